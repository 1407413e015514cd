"""How many bytes the KV cache takes, and the memory plan that is printed at start. Pure arithmetic."""

from collections.abc import Mapping
from math import gcd
from types import MappingProxyType
from typing import Final

from configs.hybrid import window_page_bytes
from configs.schema import HardwareFacts, ModelFacts, Resolved
from configs.stages import Stages, stage_parts

DTYPE_BYTES: Final[Mapping[str, int]] = MappingProxyType({"float32": 4, "bfloat16": 2})


def kv_copies(model: ModelFacts, shards: int) -> int:
    """How often each KV head is held so that ``shards`` devices get equally many."""
    return shards // gcd(shards, model.num_kv_heads)


def page_bytes(model: ModelFacts, page_size: int, dtype: str, shards: int) -> int:
    """Bytes of one page, K and V of every layer, on all ``shards`` devices together."""
    heads = model.num_kv_heads * kv_copies(model, shards)
    return 2 * model.num_layers * heads * model.head_dim * page_size * DTYPE_BYTES[dtype]


def query_places(model: ModelFacts, shards: int) -> int:
    """Query heads that are computed: the model's and the zero heads that even them out over the KV copies."""
    copies = kv_copies(model, shards)
    group = model.num_heads // model.num_kv_heads
    return model.num_kv_heads * copies * -(-group // copies)


def pool_bytes_of(resolved: Resolved, model: ModelFacts, shards: int) -> tuple[int, int]:
    """Bytes of the pages of full and of sliding layers, on all ``shards`` devices together."""
    a_page = page_bytes(model, resolved.page_size, resolved.dtype, shards)
    sliding = window_page_bytes(a_page, model) if resolved.window_pages else 0
    return resolved.num_pages * (a_page - sliding), resolved.window_pages * sliding


def memory_plan(
    resolved: Resolved, model: ModelFacts, weight_bytes: int, hardware: HardwareFacts, shards: int, stages: Stages = ()
) -> list[str]:
    """What the memory is spent on, a line each."""
    a_page = page_bytes(model, resolved.page_size, resolved.dtype, shards)
    group_bytes = pool_bytes_of(resolved, model, shards)
    pool_bytes = sum(group_bytes)
    tokens = resolved.num_pages * resolved.page_size
    full = -(-resolved.context_length // resolved.page_size)
    pages = f"{resolved.num_pages:,} pages of {resolved.page_size} = {tokens:,} tokens"
    longest = f"{min(resolved.context_length, tokens):,} tokens"
    if full > resolved.num_pages:
        longest += f"; the context of {resolved.context_length:,} does not fit the pool"
    rows = {
        "free before": f"{size(hardware.memory_bytes)} on {hardware.device_kind}",
        "weights": f"{size(weight_bytes)}, {model.num_parameters / 1e6:,.1f} M parameters",
        "KV pages": f"{size(pool_bytes)}: {pages}, {size(a_page // resolved.page_size)} a token",
        "longest request": longest,
        "full length": f"{resolved.num_pages // full:,} requests of {resolved.context_length:,} tokens fit at once",
    }
    if resolved.window_pages:
        alike = resolved.num_pages * a_page
        window_pages = f"{resolved.window_pages:,} pages = {resolved.window_pages * resolved.page_size:,} tokens"
        rows |= {
            "KV pages": f"{size(pool_bytes)}, {1 - pool_bytes / alike:.0%} less than {size(alike)} without a window",
            "full layers": f"{size(group_bytes[0])}: {pages}",
            "sliding layers": f"{size(group_bytes[1])}: {window_pages}; a request keeps about {resolved.window:,}",
        }
    if resolved.host_pages:
        host_tokens = resolved.host_pages * resolved.page_size
        rows["host pages"] = f"{size(resolved.host_pages * a_page)} of host memory: {host_tokens:,} tokens"
    if len(stages) > 1:
        rows["stages"] = f"{len(stages)} of {', '.join(str(stage.num_layers) for stage in stages)} layers"
    if shards > 1 or len(stages) > 1:
        held = [
            (part_bytes, sum(pool_bytes_of(resolved, part, shards)))
            for part, part_bytes in stage_parts(model, weight_bytes, stages)
        ]
        weights, pages_bytes = max(held, key=sum)
        most = "at most " if len(stages) > 1 else ""
        rows["each device"] = f"{most}{size(weights // shards)} of weights, {size(pages_bytes // shards)} of KV pages"
    copies = kv_copies(model, shards)
    if copies > 1:
        rows["waste"] = (
            f"{1 - 1 / copies:.0%} of the pool: {model.num_kv_heads} KV heads, each held {copies} times for {shards} "
            f"devices; {model.num_heads} query heads run as {query_places(model, shards)}"
        )
    return [f"{name:<16} {text}" for name, text in rows.items()]


def size(num_bytes: int) -> str:
    """``num_bytes`` with a binary unit, as in ``1.5 GiB``."""
    amount, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"
