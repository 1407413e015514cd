"""How long a request waits in the queue for what the storage has of its prompt, policy by policy."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from configs.schema import StoragePrefetch
from scheduler.assembly import assemble
from scheduler.commands import Finished, Shutdown
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from scheduler.tick import Tick
from tests.fakes import EchoCopies, KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask

# document: O-16, O-19

PROMPT = list(range(1, 18))
CACHED = (len(PROMPT) - 1) // SHAPES.page_size * SHAPES.page_size
TURN_NS = 1_000
"""What the scripted port's clock says that a turn takes."""
TIERS = structs.replace(
    SETTINGS, host_pages=32, host_load_threshold=1, storage=True, storage_prefetch_threshold=1, depth=0, max_inflight=0
)


@dataclass(slots=True)
class Waiting:
    """When a request arrived and when it was admitted, in readings of the clock and in turns."""

    now_ns: int = 0
    turn: int = 0
    arrived: tuple[int, int] | None = None
    admitted: tuple[int, int] | None = None

    def observe(self, event: Event) -> None:
        if isinstance(event, Tick):
            self.now_ns, self.turn = event.now_ns, self.turn + 1
            if event.commands and self.arrived is None:
                self.arrived = self.now_ns, self.turn
        elif isinstance(event, Plan) and event.admit and self.admitted is None:
            self.admitted = self.now_ns, self.turn


@dataclass(slots=True, frozen=True)
class Outcome:
    """What became of the request."""

    waited_ns: int
    waited_turns: int
    cached_tokens: int
    tokens: list[int]


def stored() -> dict[str, list[int]]:
    """What a storage holds after an earlier process has answered the prompt."""
    storage: dict[str, list[int]] = {}
    serve("wait_complete", 0, 0, storage)
    assert len(storage) >= CACHED // SHAPES.page_size
    return storage


def serve(policy: StoragePrefetch, delay: int, timeout_ns: int, storage: dict[str, list[int]]) -> Outcome:
    """One request, in a fresh process, where each answer of the storage takes ``delay`` turns."""
    setting = structs.replace(TIERS, storage_prefetch=policy, storage_prefetch_timeout_ns=timeout_ns)
    runner, waiting = KVEchoRunner(SHAPES), Waiting()
    copies = EchoCopies(runner, [delay], storage)
    port = ScriptedPort({0: [(0, ask("a", PROMPT, 3, stream=False))], 10_000: [(0, Shutdown())]}, copies=copies)
    engine = assemble(port, runner, setting, (waiting,), copies=copies)
    run(engine, setting.depth)
    engine.close()
    [finished] = [answer for _, answer in port.answers if isinstance(answer, Finished)]
    assert waiting.arrived is not None
    assert waiting.admitted is not None
    waited_ns, turns = (after - before for before, after in zip(waiting.arrived, waiting.admitted, strict=True))
    return Outcome(waited_ns, turns, finished.cached_tokens, finished.delta.tokens)


DELAYS = st.integers(0, 12)


@settings(max_examples=30, deadline=None)
@given(delay=DELAYS)
def test_best_effort_admits_at_once_and_takes_what_is_there(delay: int) -> None:
    outcome = serve("best_effort", delay, 0, stored())
    assert outcome.waited_turns == 0
    assert outcome.cached_tokens in (0, CACHED)


@settings(max_examples=30, deadline=None)
@given(delay=DELAYS)
def test_wait_complete_admits_when_all_is_there_and_computes_none_of_it_again(delay: int) -> None:
    outcome = serve("wait_complete", delay, 0, stored())
    assert outcome.waited_turns >= 2 * delay  # a look-up and a fetch, one after the other
    assert outcome.cached_tokens == CACHED


@settings(max_examples=60, deadline=None)
@given(delay=DELAYS, timeout_ns=st.integers(0, 60_000))
def test_timeout_lies_between_the_two_and_waits_at_most_a_turn_longer_than_it_says(delay: int, timeout_ns: int) -> None:
    patient, outcome = serve("wait_complete", delay, 0, stored()), serve("timeout", delay, timeout_ns, stored())
    assert outcome.waited_ns <= patient.waited_ns
    assert outcome.waited_ns <= timeout_ns + TURN_NS
    if patient.waited_ns < timeout_ns:
        assert outcome == patient


@pytest.mark.parametrize("policy", ["best_effort", "wait_complete", "timeout"])
def test_no_policy_changes_what_is_said_or_waits_for_a_storage_that_has_nothing(policy: StoragePrefetch) -> None:
    nothing = serve(policy, 1, 10**9, {})
    assert nothing.cached_tokens == 0
    assert nothing.waited_turns <= 2
    assert serve(policy, 5, 10**9, stored()).tokens == nothing.tokens
