"""What an engine shows of itself when asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Command, Explain, Finished, Frame, Look, Phase, Reason, Reply, Shutdown
from scheduler.lookout import MAX_LOOKED_AT, MAX_PREFIXES, MAX_STORIES, hottest
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.port import Answer
from scheduler.radix_cache import Node, empty_prefix
from scheduler.request import MAX_PHASES, Waits
from scheduler.step_ring import MAX_STEPS
from scheduler.tick import Tick
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.strategies import Workload, workloads

Script = dict[int, Sequence[Command]]


@dataclass
class Plans:
    """An observer that keeps the decisions that do something."""

    made: list[bytes] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan) and event.size:
            self.made.append(event.canonical())


@dataclass
class CuriousPort(ScriptedPort):
    """Looks every ``every`` turns, each time for what came after the last look."""

    every: int = 1
    frames: list[Frame] = field(default_factory=list)

    def poll(self) -> Tick:
        tick = super().poll()
        if self.turn % self.every:
            return tick
        since_ns = self.frames[-1].now_ns if self.frames else 0
        return msgspec.structs.replace(tick, commands=[*tick.commands, (0, Look(call="look", since_ns=since_ns))])

    def send(self, answers: list[Answer]) -> None:
        self.frames += [one.frame for _, one in answers if isinstance(one, Reply) and one.frame is not None]
        super().send(answers)


def watched(script: Script, setting: Settings = SETTINGS, shapes: Shapes = SHAPES) -> ScriptedPort:
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    turns[10_000] = [(0, Shutdown())]
    port = ScriptedPort(turns)
    run(assemble(port, KVEchoRunner(shapes), setting, (), clock=lambda: port.clock.now_ns + 500), setting.depth)
    return port


def reply(port: ScriptedPort, call: str) -> Reply:
    return next(answer for _, answer in port.answers if isinstance(answer, Reply) and answer.call == call)


def framed(port: ScriptedPort, call: str) -> Frame:
    frame = reply(port, call).frame
    assert frame is not None
    return frame


def play(workload: Workload, port: ScriptedPort) -> list[bytes]:
    plans = Plans()
    engine = assemble(
        port, KVEchoRunner(workload.shapes), workload.settings, (plans,), clock=lambda: port.clock.now_ns + 500
    )
    run(engine, workload.settings.depth)
    return plans.made


def script_of(workload: Workload) -> dict[int, list[tuple[int, Command]]]:
    return {turn: list(commands) for turn, commands in workload.script.items()} | {10_000: [(0, Shutdown())]}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), every=st.integers(1, 4))
def test_looking_changes_no_plan_and_frames_put_together_tell_every_story_and_step(
    workload: Workload, every: int
) -> None:
    plain = play(workload, ScriptedPort(script_of(workload)))
    port = CuriousPort(script_of(workload), every=every)
    assert play(workload, port) == plain
    phases: dict[str, dict[int, Phase]] = {}
    for frame in port.frames:
        for story in frame.stories:
            phases.setdefault(story.rid, {}).update({phase.start_ns: phase for phase in story.times.phases})
    ended = {story.rid for frame in port.frames for story in frame.stories if story.state == "ended"}
    last_ns = port.frames[-1].now_ns if port.frames else 0
    for _, answer in port.answers:
        if isinstance(answer, Finished) and answer.times.finished_ns < last_ns:
            assert answer.rid in ended
            assert sorted(phases.get(answer.rid, {}).items()) == [(one.start_ns, one) for one in answer.times.phases]
    steps = [step for frame in port.frames for step in frame.steps]
    assert [step.step for step in steps] == list(range(1, len(steps) + 1)), "a step was shown twice or never"
    assert all(step.start_ns <= step.end_ns for step in steps)
    assert all(one.end_ns <= other.start_ns for one, other in zip(steps, steps[1:], strict=False))


def test_a_live_request_is_explained_by_its_id_and_by_its_group() -> None:
    grouped = msgspec.structs.replace(ask("a", list(range(1, 21)), 20), group="call")
    questions = [Explain(call="live", rid="a"), Explain(call="group", rid="call"), Explain(call="no", rid="b")]
    port = watched({0: [grouped], 9: questions})
    [story] = reply(port, "live").stories
    assert reply(port, "group").stories == [story]
    assert (story.rid, story.state, story.outcome, story.prompt_tokens) == ("a", "running", "", 20)
    assert story.times.reason is Reason.DECODE
    assert sum(story.times.waited_ns.values()) == story.times.finished_ns - story.times.arrived_ns
    assert story.times.phases[-1].end_ns == story.times.finished_ns
    assert reply(port, "no").stories == []


def test_the_pieces_of_a_prompt_are_phases_of_their_own_and_decode_follows() -> None:
    for depth in (0, 1):
        port = watched({0: [ask("a", list(range(1, 41)), 3)]}, msgspec.structs.replace(SETTINGS, depth=depth))
        [finished] = [answer for _, answer in port.answers if isinstance(answer, Finished)]
        spans = [(phase.reason.value, phase.first, phase.last) for phase in finished.times.phases]
        assert spans == [("prefill", 0, 32), ("prefill", 32, 40), ("decode", 0, 0)], depth
        assert finished.times.reason is Reason.DECODE


def test_whoever_gives_way_is_told_for_whom() -> None:
    setting = msgspec.structs.replace(SETTINGS, max_rows=1, priority="high_first", num_pages=20)
    shapes = Shapes((1,), (8, 32), 8, 1, 2, 4, 2, 32, 50)
    urgent = msgspec.structs.replace(ask("urgent", [7, 8, 9], 3), priority=100)
    low = msgspec.structs.replace(ask("low", [1, 2, 3], 30), priority=0)
    port = watched({0: [low], 5: [urgent]}, setting, shapes)
    ends = {answer.rid: answer for _, answer in port.answers if isinstance(answer, Finished)}
    assert [phase.by for phase in ends["low"].times.phases if phase.reason is Reason.PREEMPTED] == ["urgent"]
    assert all(phase.by is None for phase in ends["urgent"].times.phases)


def test_the_queue_and_the_pages_are_shown_as_they_stand() -> None:
    requests = [ask(str(number), [number, 2, 3, 4], 12) for number in range(7)]
    frame = framed(watched({0: requests, 3: [Look(call="look", tree=True)]}), "look")
    assert [story.state for story in frame.stories] == ["running"] * 4 + ["waiting"] * 3
    assert [story.times.reason.value for story in frame.stories[4:]] == ["no_slot", "queued_behind", "queued_behind"]
    assert sum(frame.pages.values()) == SETTINGS.num_pages
    assert frame.pages["own"] + frame.pages["shared"] > 0
    assert frame.tree is not None
    assert len(frame.tree) == 4


def test_a_frame_is_bounded_and_says_how_many_requests_it_leaves_out() -> None:
    count = MAX_STORIES + 20
    frame = framed(watched({0: [ask(str(n), [1, 2], 3) for n in range(count)], 2: [Look(call="look")]}), "look")
    assert len(frame.stories) == MAX_STORIES
    assert frame.omitted == 20
    port = watched({0: [ask("a", [1], 60)], **{turn: [ask(str(turn), [2], 60)] for turn in range(70, 1000, 70)}})
    late = watched({**{turn: [ask(str(turn), [2], 60)] for turn in range(0, 1400, 70)}, 1400: [Look(call="late")]})
    assert port.answers
    assert len(framed(late, "late").steps) == MAX_STEPS


def test_the_phases_of_a_request_are_bounded_and_its_times_still_add_up() -> None:
    waits = Waits(0)
    for now_ns in range(1, 500):
        waits.change(Reason.DECODE if now_ns % 2 else Reason.TOKEN_BUDGET, now_ns)
    waits.settle(500)
    assert len(waits.phases) == MAX_PHASES
    assert len(waits.phases) + waits.omitted == 500
    assert sum(waits.total_ns.values()) == 500


def tree(uses: list[tuple[int, int]]) -> Node:
    """Nodes (index of the parent, uses); a child is used no more than its parent."""
    nodes = [empty_prefix()]
    nodes[0].uses = 1_000
    for number, (parent, count) in enumerate(uses, 1):
        above = nodes[parent % len(nodes)]
        node = Node(bytes([number % 256]), b"", [number], above, number, 0, number, min(count, above.uses), 0, 0, {})
        above.children[number.to_bytes(4, "little")] = node
        nodes.append(node)
    return nodes[0]


@given(uses=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), max_size=120))
def test_the_hottest_prefixes_are_those_used_most_and_none_stands_before_its_parent(
    uses: list[tuple[int, int]],
) -> None:
    root = tree(uses)
    found = hottest(root)
    counts: list[int] = []
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        counts.append(node.uses)
        stack += node.children.values()
    assert sorted((one.uses for one in found), reverse=True) == sorted(counts, reverse=True)[:MAX_PREFIXES]
    seen = {0}
    for one in found:
        assert one.parent in seen
        seen.add(one.number)


def test_a_wide_tree_is_looked_at_only_so_far() -> None:
    root = tree([(0, 1)] * (MAX_LOOKED_AT + 50))
    assert len(hottest(root)) == MAX_PREFIXES
