"""The whole time of a request: the engine's account between the frontend's before and after."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from scheduler.commands import Delta, Finished, FinishReason, Phase, Reason, Rejected, RequestTimes, Story
from serving.chronicle import Chronicle, Marks
from serving.protocol.explain import WORDS, explanation

BEFORE = [Reason.QUEUED_BEHIND, Reason.NO_PAGES, Reason.PREFILL, Reason.DECODE, Reason.PREEMPTED]
SPANS = st.lists(st.tuples(st.sampled_from(BEFORE), st.integers(1, 10**9)), max_size=8)
NS = st.integers(0, 10**9)


def times(spans: list[tuple[Reason, int]], arrived_ns: int, last: Reason, omitted: int = 0) -> RequestTimes:
    phases: list[Phase] = []
    waited: Counter[str] = Counter()
    at = arrived_ns
    for index, (reason, length) in enumerate(spans):
        piece = (index, index + 1) if reason is Reason.PREFILL else (0, 0)
        phases.append(Phase(reason, at, at + length, *piece, "x" if reason is Reason.PREEMPTED else None))
        waited[reason.value] += length
        at += length
    return RequestTimes(
        arrived_ns=arrived_ns,
        admitted_ns=0,
        first_token_ns=0,
        finished_ns=at,
        waited_ns=dict(waited),
        phases=phases[: len(phases) - omitted],
        omitted=omitted,
        reason=last,
    )


def finished(given_times: RequestTimes) -> Finished:
    return Finished(
        rid="r",
        delta=Delta(rid="r", tokens=[]),
        reason=FinishReason.LENGTH,
        prompt_tokens=9,
        output_tokens=3,
        cached_tokens=4,
        times=given_times,
    )


@given(
    spans=SPANS,
    last=st.sampled_from(BEFORE),
    pauses=st.tuples(NS, NS, NS, NS),
    skew=st.sampled_from([0, 0, 0, -(10**13), 10**13]),
    early=st.booleans(),
    omitted=st.integers(0, 2),
)
def test_the_parts_of_the_whole_time_add_up_and_follow_one_another(
    spans: list[tuple[Reason, int]],
    last: Reason,
    pauses: tuple[int, int, int, int],
    skew: int,
    early: bool,
    omitted: int,
) -> None:
    tokenizing, way, rest, reading = pauses
    received = 10**12
    sent = received + tokenizing
    account = times(spans, sent + way + skew, last, min(omitted, len(spans)))
    answered = account.finished_ns - skew + rest
    told: list[Story] = []
    chronicle = Chronicle(told.append)
    chronicle.opened("r", Marks("g", 9, received, sent))
    if early:  # a stop string: nobody reads on
        chronicle.left("r", answered - 1)
    chronicle.answered(finished(account), answered)
    if not early:
        waits = chronicle.waits_s("r")
        assert waits is not None
        assert abs(sum(waits.values()) - (answered - received) / 1e9) < 1e-6
        chronicle.left("r", answered + reading)
    [story] = told
    end = answered if early else answered + reading
    assert (story.times.arrived_ns, story.times.finished_ns) == (received, end)
    assert sum(story.times.waited_ns.values()) == end - received
    if not account.omitted:
        edges = [received, *(phase.end_ns for phase in story.times.phases)]
        assert [phase.start_ns for phase in story.times.phases] == edges[:-1]
        assert edges[-1] == end
    if not early:
        assert story.times.waited_ns.get("stalled_reader", 0) == reading
    assert story.times.waited_ns.get("tokenizing", 0) == tokenizing
    shown = explanation(story)
    assert abs(sum(shown.waits.values()) - shown.wall_s) < 1e-6
    assert shown.outcome == "length"
    chronicle.left("r", end + 1)
    assert len(told) == 1, "a request is told once"


def test_a_request_dropped_from_the_queue_is_told_with_what_it_waited_for_and_one_refused_at_once_without() -> None:
    told: list[Story] = []
    chronicle = Chronicle(told.append)
    for rid, waited in (("a", times([(Reason.NO_PAGES, 70)], 30, Reason.NO_PAGES)), ("b", None)):
        chronicle.opened(rid, Marks(None, 5, 0, 10))
        rejected = Rejected(rid=rid, status=503, code="waiting_timeout", message="", times=waited)
        chronicle.answered(rejected, 120)
        chronicle.left(rid, 120)
    assert [story.times.waited_ns for story in told] == [
        {"tokenizing": 10, "new": 20, "no_pages": 90},
        {"tokenizing": 10, "new": 110},
    ]
    assert {story.outcome for story in told} == {"waiting_timeout"}


def test_what_will_not_be_answered_and_what_is_unknown_is_not_told() -> None:
    told: list[Story] = []
    chronicle = Chronicle(told.append)
    chronicle.opened("r", Marks(None, 5, 0, 10))
    chronicle.forget("r")
    chronicle.left("r", 20)
    chronicle.answered(finished(times([], 15, Reason.DECODE)), 20)
    assert told == []
    assert chronicle.waits_s("r") is None


def test_every_reason_has_words() -> None:
    assert set(WORDS) == set(Reason)


def test_an_explanation_says_in_one_sentence_what_was_waited_for() -> None:
    spans = [
        (Reason.QUEUED_BEHIND, 900_000_000),
        (Reason.NO_PAGES, 300_000_000),
        (Reason.PREFILL, 40_000_000),
        (Reason.PREFILL, 60_000_000),
        (Reason.PREEMPTED, 50_000_000),
        (Reason.DECODE, 2_000_000_000),
    ]
    story = Story(
        rid="r",
        group="call",
        state="ended",
        outcome="length",
        prompt_tokens=9,
        cached_tokens=4,
        computed_tokens=0,
        output_tokens=3,
        retractions=1,
        times=times(spans, 0, Reason.DECODE),
    )
    shown = explanation(story)
    assert shown.sentence == (
        "waited 1.2 s: 900 ms behind others, 300 ms for pages, 50 ms after it gave way; "
        "100 ms of prefill (2 pieces, 9 prompt tokens, 4 tokens from the cache); "
        "2.0 s of decode (3 tokens); ended: length."
    )
    assert [phase.detail for phase in shown.phases] == [
        "behind others",
        "for pages",
        "piece 1 of 2: tokens 2 to 3 of 9",
        "piece 2 of 2: tokens 3 to 4 of 9",
        "gave way to x",
        "decode",
    ]
