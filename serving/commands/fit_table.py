"""``radjax config fit`` for people: the proposals, one of them closely, and the limits of its steps."""

from collections.abc import Iterator, Sequence

from configs.memory import size
from serving.commands.fit import Division, Fit, StepLimit

PROPOSALS = (
    "tensor",
    "stages",
    "expert",
    "replicas",
    "weights",
    "KV pages",
    "longest",
    "full",
    "typical",
    "tok/s",
    "ms",
)
LIMITS = ("step", "memory ms", "arithmetic ms", "link ms", "limit ms", "bound by", "tok/s")


def report(fit: Fit) -> list[str]:
    """The answer, a line each."""
    return [*_head(fit), "", *_proposals(fit), "", *_closely(fit), "", *_limits(fit), "", *_notes(fit)]


def _head(fit: Fit) -> Iterator[str]:
    device = fit.machine.device
    yield f"{fit.model}: {fit.parameters / 1e9:,.1f} B parameters, {fit.dtype}"
    yield (
        f"{fit.machine.name}: each {size(fit.device_bytes)} for the engine, {device.bytes_per_s / 1e12:.2f} TB/s, "
        f"{device.flops_per_s / 1e12:,.0f} TFLOP/s, {device.link_bytes_per_s / 1e9:,.0f} GB/s to {device.island - 1} "
        f"others, {device.network_bytes_per_s / 1e9:,.0f} GB/s beyond"
    )
    yield f"  {device.source}"


def _proposals(fit: Fit) -> Iterator[str]:
    count = f"{len(fit.proposals)} of {fit.possible}"
    yield f"divisions that fit, best first ({count}); bytes of one device; limits by formula"
    yield from table([PROPOSALS, *map(_proposal, fit.proposals)])


def _proposal(one: Division) -> tuple[str, ...]:
    return (
        str(one.tensor),
        str(one.stages),
        str(one.expert),
        str(one.replicas),
        size(one.weight_bytes),
        size(one.kv_bytes),
        f"{one.longest_request:,}",
        f"{one.full_length_requests:,}",
        f"{one.typical_requests:,}",
        f"{one.decode_tokens_per_s:,.0f}",
        f"{one.one_row_s * 1e3:.1f}",
    )


def _closely(fit: Fit) -> Iterator[str]:
    one = fit.chosen
    yield f"tensor {one.tensor}, stages {one.stages}, expert {one.expert}, replicas {one.replicas}"
    free = fit.device_bytes - one.weight_bytes - one.kv_bytes
    held = f"{size(one.weight_bytes)} of weights, {size(one.kv_bytes)} of KV pages"
    yield f"  each device     {held}, {size(free)} left for steps"
    yield f"  each replica    {one.pages:,} pages of {one.page_size} = {one.pool_tokens:,} tokens"
    longest = f"{one.longest_request:,} tokens"
    if one.longest_request < one.context_length:
        longest += f"; the context of {one.context_length:,} does not fit the pool"
    yield f"  longest request {longest}"
    full = f"{one.full_length_requests:,} of {one.context_length:,} tokens"
    typical = f"{one.typical_requests:,} of {fit.workload.context:,}, of which {one.rows:,} run"
    yield f"  at once         {full}, or {typical}"
    if one.wasted_kv:
        yield f"  waste           {one.wasted_kv:.0%} of the KV pages repeats heads; {one.query_heads} query heads run"


def _limits(fit: Fit) -> Iterator[str]:
    yield f"limits of a step of one replica, requests of {fit.workload.context:,} tokens; counted by XLA"
    yield from table([LIMITS, *map(_limit, fit.limits)])


def _limit(one: StepLimit) -> tuple[str, ...]:
    what = f"decode {one.size:,}" if one.kind == "decode" else f"prompt of {one.size:,}"
    times = (one.memory_s, one.arithmetic_s, one.link_s, one.seconds)
    return (what, *(f"{seconds * 1e3:.2f}" for seconds in times), one.bound_by, f"{one.tokens_per_s:,.0f}")


def _notes(fit: Fit) -> Iterator[str]:
    yield "full, typical: requests that fit at once, of one replica; tok/s: of all replicas, with as many as may run;"
    yield "ms: for a token of a request that runs alone. Limits are the vendor's peaks: real steps are slower."
    if fit.chosen.stages > 1:
        yield "memory, arithmetic and link are those of one stage; the limit is that of all, one after the other."


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns, right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
