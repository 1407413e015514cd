"""Hypothesis strategies: token lists over a tiny alphabet, shapes, settings, workloads that starve."""

from dataclasses import dataclass

from hypothesis import strategies as st

from configs.hybrid import least_window_pages
from model.interface import Shapes
from scheduler.assembly import Settings
from scheduler.commands import Abort, Command, ContinueGeneration, Generate, PauseGeneration, SamplingParams, Stop

TWO_TOKENS = st.integers(0, 1)
EOS = 1


@dataclass(frozen=True)
class Workload:
    """An engine's settings and the commands of every turn."""

    shapes: Shapes
    settings: Settings
    script: dict[int, list[tuple[int, Command]]]
    requests: tuple[Generate, ...]


@st.composite
def shapes(draw: st.DrawFn, vocab_size: int, pressed: bool) -> Shapes:
    """Ladders with few, small programs."""
    tile = draw(st.sampled_from([1, 2, 4]))
    page_size = draw(st.sampled_from([1, 2, 4]))
    max_rows = draw(st.integers(3 if pressed else 1, 5))
    largest = tile * draw(st.integers(-(-max_rows // tile) + 1, 12))
    middle = {tile * draw(st.integers(1, largest // tile))} if draw(st.booleans()) else set()
    return Shapes(
        decode_rows=tuple(sorted({1, max_rows, min(2, max_rows)})),
        mixed_tokens=tuple(sorted({largest, *middle})),
        score_tokens=tile * draw(st.integers(1, 3)),
        max_rows=max_rows,
        max_pieces=draw(st.integers(1, 3)),
        tile=tile,
        page_size=page_size,
        pages_per_row=-(-26 // page_size),
        vocab_size=vocab_size,
        window=draw(st.sampled_from([0, 0, 1, 2, 5, 9])),
    )


@st.composite
def generates(draw: st.DrawFn, rid: str, vocab_size: int, pressed: bool) -> Generate:
    """A request of up to 9 prompt and 16 output tokens; a pressed one says a lot and shares little."""
    prompt = draw(st.lists(TWO_TOKENS, min_size=3 if pressed else 1, max_size=9))
    kind = draw(st.sampled_from(["plain"] * 5 + ["score", "min", "penalty", "logprobs"]))
    params = SamplingParams(
        max_new_tokens=draw(st.integers(10, 16) if pressed else st.integers(0, 16)),
        ignore_eos=pressed or draw(st.booleans()),
        stop_token_ids=(2,) if not pressed and draw(st.booleans()) and vocab_size > 2 else (),
        seed=5,
        min_new_tokens=draw(st.integers(1, 4)) if kind == "min" else 0,
        repetition_penalty=1.5 if kind == "penalty" else 1.0,
        logprobs=draw(st.integers(0, 3)) if kind == "logprobs" else None,
        prompt_logprobs=draw(st.integers(0, 2)) if kind == "score" else None,
        prompt_logprobs_from=draw(st.integers(0, 10)) if kind == "score" else 0,
    )
    return Generate(
        rid=rid,
        prompt=prompt,
        params=params,
        stream=draw(st.booleans()),
        extra_key=draw(st.sampled_from([None, None, None, "a", ""])),
        cache_salt=draw(st.sampled_from([None, None, None, "a"])),
        adapter=draw(st.sampled_from([None, None, None, "a"])),
        routing_key=draw(st.sampled_from([None, None, "x", "y"])),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Requests that arrive over time, some aborted or stopped, on a pool that barely holds one of them."""
    vocab_size = draw(st.integers(4, 6))
    pressed = draw(st.booleans())
    ladders = draw(shapes(vocab_size, pressed))
    count = draw(st.integers(3 if pressed else 1, 9))
    requests = tuple(draw(generates(f"r{index}", vocab_size, pressed)) for index in range(count))
    script: dict[int, list[tuple[int, Command]]] = {}
    for index, request in enumerate(requests):
        turn = draw(st.integers(0, 4 if pressed else 12))
        script.setdefault(turn, []).append((index % 2, request))
        fate = draw(st.sampled_from(["live"] * 6 + ["abort", "stop"]))
        later = turn + draw(st.integers(0, 12))
        if fate == "abort":
            script.setdefault(later, []).append((index % 2, Abort(rid=request.rid)))
        elif fate == "stop":
            number = draw(st.integers(0, 3))
            script.setdefault(later, []).append((index % 2, Stop(rid=request.rid, num_tokens=number, matched="x")))
    max_inflight = draw(st.integers(0, 4))
    window_pages = 0
    if ladders.window:
        least = least_window_pages(ladders.window, ladders.page_size, max_inflight)
        window_pages = least + draw(st.integers(0, 6))
    if draw(st.sampled_from([False] * 3 + [True])):
        begin, mode = draw(st.integers(0, 12)), draw(st.sampled_from(["retract", "in_place"]))
        end = begin + draw(st.integers(0, 12))
        script.setdefault(begin, []).append((0, PauseGeneration(call="p", mode=mode)))
        script.setdefault(end, []).append((1, ContinueGeneration(call="c")))
    settings = Settings(
        context_length=25,
        window_pages=window_pages,
        num_pages=-(-(24 + draw(st.integers(6, 20) if pressed else st.integers(0, 40))) // ladders.page_size),
        max_rows=draw(st.integers(2 if pressed else 1, ladders.max_rows)),
        depth=draw(st.integers(0, 4)),
        max_inflight=max_inflight,
        micro_batches=draw(st.sampled_from([1, 1, 2, 3])),
        eos_ids=(EOS,),
        reuse=draw(st.sampled_from([True, True, True, False])),
        eviction=draw(st.sampled_from(["lru", "lfu", "slru", "fifo", "mru", "filo", "priority"])),
        order=draw(st.sampled_from(["fcfs", "lpm", "dfs-weight", "lof", "random", "routing-key"])),
        order_seed=draw(st.integers(0, 3)),
        max_passed_over=draw(st.sampled_from([0, 0, 1, 3])),
        max_prefill_tokens=draw(st.sampled_from([1, 3, 8, 2**31 - 1])),
        mixed=draw(st.sampled_from([True, True, False])),
        defer_shared_tokens=draw(st.sampled_from([0, 1, 3])),
        conservativeness=0.01 if pressed else draw(st.sampled_from([0.01, 1.0])),
        check="every_step",
        adapters=("a",),
    )
    return Workload(ladders, settings, script, requests)
