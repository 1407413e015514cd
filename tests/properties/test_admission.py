"""What admission promises, over whole runs: nobody starves, prefixes are computed once, decoding goes on."""

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from model.interface import Family, Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Command, Reason, Shutdown
from scheduler.loop import run
from scheduler.observe import Event, Observer
from scheduler.planner import Plan
from scheduler.request import Request
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.strategies import Workload, workloads

# document: O-19

ROOMY = replace(SHAPES, mixed_tokens=(256,), max_pieces=4, pages_per_row=128, tile=2)
WHOLE = structs.replace(SETTINGS, context_length=256, num_pages=512)


def play(script: dict[int, list[Command]], setting: Settings, observer: Observer, shapes: Shapes = ROOMY) -> None:
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    turns[10_000] = [(0, Shutdown())]
    run(assemble(ScriptedPort(turns), KVEchoRunner(shapes), setting, (observer,)), setting.depth)


def play_workload(workload: Workload, observer: Observer) -> None:
    script = {turn: [command for _, command in commands] for turn, commands in workload.script.items()}
    play(script, workload.settings, observer, workload.shapes)


@dataclass
class Bounds:
    """Holds every plan against the budgets of its workload."""

    workload: Workload
    passed: Counter[int] = field(default_factory=Counter)
    left_out: Counter[int] = field(default_factory=Counter)
    """Steps in a row that went without a decode row which could have run."""
    runs: dict[int, Request] = field(default_factory=dict)

    def observe(self, event: Event) -> None:
        if not isinstance(event, Plan):
            return
        self.check_prompts(event)
        self.check_passed(event)
        for request in event.admit:
            self.runs[request.number] = request
        for request in (*event.retract, *event.preempt):
            del self.runs[request.number]
        if event.size:
            self.check_decode(event)

    def check_prompts(self, plan: Plan) -> None:
        setting, pieces = self.workload.settings, plan.pieces
        assert plan.family is Family.SCORE or sum(piece.length for piece in pieces) <= setting.max_prefill_tokens
        assert setting.mixed or not (plan.decode and pieces)

    def check_passed(self, plan: Plan) -> None:
        for request, times in plan.passed:
            assert 0 < times <= len(plan.admit)
            assert request not in plan.admit
            self.passed[request.number] += times
            assert self.passed[request.number] <= self.workload.settings.max_passed_over

    def check_decode(self, plan: Plan) -> None:
        """A row that could decode misses one step in a row at most, unless there are more than a plan may hold.

        Of micro-batches a plan holds its share.
        """
        planned = {request.number for request in plan.decode}
        ready = [
            request
            for request in self.runs.values()
            if request.lease is not None
            and request.finish is None
            and request.inflight <= request.max_inflight
            and request.computed < request.goal
            and request.length - request.computed == 1
            and request.max_new
        ]
        setting = self.workload.settings
        crowded = len(ready) > setting.max_rows or setting.micro_batches > 1
        for request in ready:
            missed = 0 if request.number in planned or crowded else self.left_out[request.number] + 1
            self.left_out[request.number] = missed
            assert missed <= 1, "a decode row was stalled by two steps in a row"
            alone = plan.family is not Family.SCORE and setting.mixed
            assert not (missed and alone), "a mixed step went without a row that could decode"


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads())
def test_every_plan_keeps_to_its_budgets_and_no_prompt_stalls_decoding_for_two_steps(workload: Workload) -> None:
    play_workload(workload, Bounds(workload))


@dataclass
class Admissions:
    """The order of first admissions, and who was held back for its prefix."""

    order: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    deferred: set[str] = field(default_factory=set)
    steps: int = 0
    first: int = 0
    """Requests that the first plan admitted."""

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan):
            self.first = self.first or len(event.admit)
            self.order += [request.rid for request in event.admit if request.rid not in self.order]
            self.prompt_tokens += sum(piece.length for piece in event.pieces)
            self.deferred |= {b.request.rid for b in event.blocked if b.reason is Reason.PREFIX_PENDING}
            self.steps += bool(event.size)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(0, 5), large=st.integers(60, 90), flood=st.integers(8, 30), data=st.data())
def test_a_large_request_under_a_flood_of_small_ones_is_passed_no_more_often_than_allowed(
    limit: int, large: int, flood: int, data: st.DataObject
) -> None:
    script: dict[int, list[Command]] = {0: [ask("first", [1] * 30, 30)], 1: [ask("large", [2] * large, 1)]}
    for index in range(flood):
        turn = data.draw(st.integers(2, 20))
        script.setdefault(turn, []).append(ask(f"small{index}", [3 + index % 40, 5], data.draw(st.integers(1, 6))))
    setting = structs.replace(WHOLE, num_pages=50, max_passed_over=limit, conservativeness=0.5)
    seen = Admissions()
    play(script, setting, seen)
    assert len(seen.order) == flood + 2
    passed_by = seen.order.index("large") - 1
    assert passed_by <= limit


def test_a_small_request_passes_a_large_one_only_if_admission_skips() -> None:
    script: dict[int, list[Command]] = {
        0: [ask("first", [1] * 30, 30)],
        1: [ask("large", [2] * 80, 1), ask("small", [3, 4], 2)],
    }
    for limit, expected in ((0, ["first", "large", "small"]), (1, ["first", "small", "large"])):
        seen = Admissions()
        play({**script}, structs.replace(WHOLE, num_pages=50, max_passed_over=limit), seen)
        assert seen.order == expected


@settings(max_examples=60, deadline=None)
@given(
    shared=st.integers(4, 60),
    tails=st.lists(st.integers(1, 12), min_size=2, max_size=8),
    order=st.sampled_from(["fcfs", "lpm", "dfs-weight", "lof", "random"]),
    chunk=st.sampled_from([8, 32, 256]),
)
def test_requests_that_arrive_together_compute_their_common_prefix_once(
    shared: int, tails: list[int], order: str, chunk: int
) -> None:
    prefix = [1 + index % 7 for index in range(shared)]
    requests = [ask(str(index), [*prefix, 10 + index, *([9] * (tail - 1))], 1) for index, tail in enumerate(tails)]
    script: dict[int, list[Command]] = {0: [*requests]}
    shapes = replace(ROOMY, mixed_tokens=(chunk,))
    seen = Admissions()
    size = shapes.page_size
    setting = structs.replace(WHOLE, order=order, defer_shared_tokens=size)
    play(script, setting, seen, shapes)
    # Each computes what follows the pages of the prefix; a prefix that ends within a page shares no more than that.
    assert seen.prompt_tokens <= shared + sum(tails) + len(tails) * (2 * size - 1)
    assert seen.deferred


def test_without_a_prefix_cache_or_when_told_so_nobody_waits_for_a_prefix() -> None:
    requests: list[Command] = [ask(str(index), [1] * 40 + [index + 2], 1) for index in range(4)]
    for change in ({"reuse": False}, {"defer_shared_tokens": 0}, {"defer_shared_tokens": 42}):
        seen = Admissions()
        play({0: [*requests]}, structs.replace(WHOLE, **change), seen)
        assert (seen.deferred, seen.prompt_tokens, seen.steps) == (set(), 4 * 41, 1)
    seen = Admissions()
    play({0: [*requests]}, structs.replace(WHOLE, defer_shared_tokens=40), seen)
    assert (len(seen.deferred), seen.prompt_tokens, seen.steps) == (
        3,
        41,
        2,
    )  # the last token of each is a decode row then


def test_whoever_waits_for_a_prefix_holds_back_nobody() -> None:
    shared = [1] * 40
    another_namespace = structs.replace(ask("d", [*shared, 3], 1), extra_key="other")
    requests: list[Command] = [ask("a", [*shared, 2], 1), ask("b", [*shared, 3], 1), ask("c", [4] * 41, 1)]
    seen = Admissions()
    play({0: [*requests, another_namespace]}, WHOLE, seen)
    assert seen.order == ["a", "c", "d", "b"]
    assert seen.deferred == {"b"}


@pytest.mark.parametrize(("ignore_eos", "together"), [(True, 3), (False, 2)])
def test_requests_that_end_in_time_are_admitted_though_the_pool_never_holds_all_their_output_at_once(
    ignore_eos: bool, together: int
) -> None:
    # SGLang's estimate for requests that ignore the end of sequence, without prefix cache
    lengths = {"a": 30, "b": 90, "c": 60}
    requests: list[Command] = [ask(rid, [1] * 4, new, ignore_eos=ignore_eos) for rid, new in lengths.items()]
    seen = Admissions()
    play({0: requests}, structs.replace(WHOLE, num_pages=78, reuse=False), seen)
    assert seen.first == together
