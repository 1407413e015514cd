"""Host memory and a storage below the cache: whatever is copied, every request gets the tokens it would get alone."""

import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from configs.schema import Eviction, HostWritePolicy
from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import (
    Abort,
    AttachStorage,
    ClearStorage,
    Command,
    DetachStorage,
    Generate,
    Reply,
    SamplingParams,
    Shutdown,
    Stop,
)
from scheduler.completions import Saved
from scheduler.eviction import POLICIES
from scheduler.host_tier import TOKEN_BYTES, HostTier
from scheduler.kv_cache import KVCache
from scheduler.loop import run
from scheduler.observe import Observer
from scheduler.page_allocator import PageAllocator
from scheduler.radix_cache import RadixCache, prefix_to
from scheduler.recording import Planned, Recorder, read_frames
from scheduler.replay import replay
from scheduler.slots import Slots
from tests.fakes import EchoCopies, KVEchoRunner, ScriptedPort
from tests.properties.test_any_schedule_equals_naive import check_request, collect
from tests.properties.test_kv_cache import Holder
from tests.strategies import TWO_TOKENS, Workload, workloads

# document: O-16, O-19, O-20, O-26, M-11

WRITE_POLICIES: list[HostWritePolicy] = ["write_through", "write_through_selective", "write_back"]


@dataclass(frozen=True)
class Below:
    """What lies below the cache, and how slow it is."""

    delays: list[int]
    stored: bool
    shown: int


Script = dict[int, list[tuple[int, Command]]]


@st.composite
def coming_again(draw: st.DrawFn, vocab_size: int) -> tuple[tuple[Generate, ...], Script]:
    """Requests that come one after the other and share few beginnings, which the device drops in between."""
    token = st.integers(0, vocab_size - 1)
    beginnings = draw(st.lists(st.lists(token, min_size=8, max_size=16), min_size=2, max_size=4))
    requests: list[Generate] = []
    script: Script = {}
    turn = 0
    for index in range(draw(st.integers(4, 12))):
        prompt = draw(st.sampled_from(beginnings)) + draw(st.lists(token, min_size=1, max_size=3))
        params = SamplingParams(max_new_tokens=draw(st.integers(1, 5)), ignore_eos=True, seed=5)
        salt = draw(st.sampled_from([None, None, None, "a"]))
        requests.append(Generate(rid=f"r{index}", prompt=prompt, params=params, stream=False, cache_salt=salt))
        turn += draw(st.integers(0, 25))
        script.setdefault(turn, []).append((0, requests[-1]))
    return tuple(requests), script


@st.composite
def tiered(draw: st.DrawFn) -> tuple[Workload, Below]:
    """A workload whose engine has a host tier, as small as one page, and perhaps a storage."""
    workload, stored = draw(workloads()), draw(st.booleans())
    setting = structs.replace(
        workload.settings,
        reuse=True,
        window_pages=0,
        host_pages=draw(st.integers(1, 60)),
        host_write_policy=draw(st.sampled_from(WRITE_POLICIES)),
        host_load_threshold=draw(st.integers(1, 4)),
        storage=stored,
        storage_prefetch=draw(st.sampled_from(["best_effort", "wait_complete", "timeout"])),
        storage_prefetch_timeout_ns=draw(st.integers(0, 40_000)),
        storage_prefetch_threshold=draw(st.integers(1, 3)),
    )
    requests, script = workload.requests, {turn: list(commands) for turn, commands in workload.script.items()}
    if draw(st.booleans()):
        requests, script = draw(coming_again(workload.shapes.vocab_size))
    orders: list[Command] = [
        AttachStorage(call="attach", directory="known"),
        AttachStorage(call="attach", directory="unknown", prefetch="wait_complete"),
        DetachStorage(call="detach"),
        ClearStorage(call="clear"),
    ]
    for _ in range(draw(st.integers(0, 3))):
        script.setdefault(draw(st.integers(0, 30)), []).append((0, draw(st.sampled_from(orders))))
    delays = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    below = Below(delays, stored, draw(st.sampled_from([0, 1, 2, 1000])))
    return Workload(replace(workload.shapes, window=0), setting, script, requests), below


def play(
    workload: Workload, below: Below, *observers: Observer, storage: dict[str, list[int]] | None = None
) -> tuple[ScriptedPort, EchoCopies]:
    """Run a workload to its end; ``storage``: what an earlier process has left."""
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, Shutdown())]
    runner = KVEchoRunner(workload.shapes)
    copies = EchoCopies(runner, below.delays, dict(storage or {}) if below.stored else None, below.shown)
    port = ScriptedPort(script, copies=copies)
    engine = assemble(port, runner, workload.settings, observers, copies=copies)
    run(engine, workload.settings.depth)
    engine.close()
    assert copies.closed
    return port, copies


def looked_up_while_cleared() -> tuple[Workload, Below]:
    """After the restart a request arrives while the storage that has its prompt is being cleared."""
    shapes = Shapes(
        decode_rows=(1,),
        mixed_tokens=(2,),
        score_tokens=1,
        max_rows=1,
        max_pieces=1,
        tile=1,
        page_size=1,
        pages_per_row=26,
        vocab_size=4,
    )
    setting = Settings(
        context_length=25,
        num_pages=24,
        max_rows=1,
        depth=0,
        max_inflight=0,
        eos_ids=(1,),
        host_pages=16,
        host_load_threshold=1,
        storage=True,
        storage_prefetch="best_effort",
        storage_prefetch_threshold=1,
        check="every_step",
    )
    params = SamplingParams(max_new_tokens=1, ignore_eos=True, seed=5)
    request = Generate(rid="r0", prompt=[0] * 9, params=params, stream=False)
    script: Script = {0: [(0, ClearStorage(call="clear")), (0, request)]}
    return Workload(shapes, setting, script, (request,)), Below(delays=[2], stored=True, shown=1)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=tiered())
@example(case=looked_up_while_cleared())
def test_any_schedule_with_any_tiers_gives_every_request_the_tokens_it_would_get_alone(
    case: tuple[Workload, Below],
) -> None:
    workload, below = case
    port, copies = play(workload, below)
    check_answers(workload, port)
    if below.stored:
        after_a_restart, _ = play(workload, below, storage=copies.storage)
        check_answers(workload, after_a_restart)


def check_answers(workload: Workload, port: ScriptedPort) -> None:
    heard = collect(port)
    commands = [command for turn in workload.script.values() for _, command in turn]
    disturbed = Counter(command.rid for command in commands if isinstance(command, Abort | Stop))
    assert set(heard) == {request.rid for request in workload.requests}
    for request in workload.requests:
        check_request(request, heard[request.rid], workload.shapes.vocab_size, request.rid in disturbed)
    asked = sum(isinstance(command, AttachStorage | DetachStorage | ClearStorage) for command in commands)
    calls = [answer.call for _, answer in port.answers if isinstance(answer, Reply)]
    assert len([call for call in calls if call in ("attach", "detach", "clear")]) == asked


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=tiered())
def test_a_replay_needs_no_tiers_to_give_the_same_plans(case: tuple[Workload, Below]) -> None:
    workload, below = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        recorder = Recorder(path.open("wb"), workload.shapes, workload.settings, 2**30, b"key")
        play(workload, below, recorder)
        recorder.close()
        assert replay(path) == sum(isinstance(frame, Planned) for frame in read_frames(path)) > 0


SLOTS = 4


class TierMachine(RuleBasedStateMachine):
    """The cache and its host tier on pools that starve; host memory is read as it would be loaded, at any time."""

    @initialize(
        page_size=st.sampled_from([1, 2, 3]),
        num_pages=st.integers(3, 14),
        host_pages=st.integers(1, 14),
        eviction=st.sampled_from(sorted(POLICIES)),
        policy=st.sampled_from(WRITE_POLICIES),
        load_pages=st.integers(1, 2),
    )
    def start(
        self,
        page_size: int,
        num_pages: int,
        host_pages: int,
        eviction: Eviction,
        policy: HostWritePolicy,
        load_pages: int,
    ) -> None:
        self.size = page_size
        self.memory: dict[tuple[int, int], int] = {}
        self.copies = EchoCopies(SimpleNamespace(memory=self.memory, shapes=SimpleNamespace(page_size=page_size)), [0])
        order = POLICIES[eviction]
        self.host = HostTier(
            PageAllocator(host_pages), RadixCache(page_size, order), self.copies, page_size, policy, load_pages
        )
        cache = RadixCache(page_size, order)
        cache.leaving = self.host.leaving
        self.kv = KVCache(PageAllocator(num_pages), Slots(SLOTS), cache, page_size, num_pages, self.host)
        self.holders: list[Holder] = []

    def tail(self, holder: Holder) -> np.ndarray:
        return np.array(holder.tokens[holder.lease.published * self.size : holder.written], np.int32)

    @precondition(lambda self: self.kv.free_slots)
    @rule(
        prompts=st.lists(st.lists(TWO_TOKENS, min_size=1, max_size=12), min_size=1, max_size=3),
        namespace=st.sampled_from([b"", b"\0n"]),
    )
    def admit(self, prompts: list[list[int]], namespace: bytes) -> None:
        """Open as many as have room, then load for all: as one plan does."""
        spare, opened = self.kv.available()[0], []
        for tokens in prompts[: self.kv.free_slots]:
            key = np.array(tokens[:-1], np.int32)
            hit = self.kv.peek(key, namespace)
            if spare < hit.unlocked + hit.host:
                continue
            spare -= hit.unlocked + hit.host
            lease = self.kv.open(key, namespace, 0)
            assert (lease.shared, lease.reach) == (hit.pages, hit.reach)
            opened.append(Holder(lease, tokens, lease.reach * self.size))
        for holder in opened:
            reach = holder.lease.reach
            self.kv.load(holder.lease)
            assert holder.lease.held is None
            assert holder.lease.shared == len(holder.lease.pages[0]) == reach
        self.holders += opened

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), count=st.integers(1, 9))
    def write(self, data: st.DataObject, count: int) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        end = holder.written + count
        if -(-end // self.size) - len(holder.lease.pages[0]) > self.kv.available()[0]:
            return
        self.kv.grow(holder.lease, end)
        while len(holder.tokens) < end:
            holder.tokens.append(data.draw(TWO_TOKENS))
        for position in range(holder.written, end):
            self.memory[holder.lease.pages[0][position // self.size], position % self.size] = holder.tokens[position]
        holder.written = end

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        self.kv.publish(holder.lease, self.tail(holder))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.kv.close(holder.lease, self.tail(holder))

    @precondition(lambda self: self.copies.under_way)
    @rule()
    def finish_copies(self) -> None:
        for done in self.copies.due():
            assert isinstance(done, Saved)
            self.host.unlock(self.host.saved(done.ticket).node)

    @rule()
    def flush(self) -> None:
        self.kv.flush()
        assert self.kv.peek(np.array([0, 0], np.int32), b"").host == 0

    @invariant()
    def every_lease_reads_what_it_wrote(self) -> None:
        self.kv.check()
        for holder in self.holders:
            pages = self.kv.tables[0][holder.lease.slot]
            read = [self.memory[int(pages[p // self.size]), p % self.size] for p in range(holder.written)]
            assert read == holder.tokens[: holder.written]

    @invariant()
    def host_pages_hold_the_tokens_of_their_prefix(self) -> None:
        unready = {page for save in self.host.saves.values() for page in save.pages}
        for node in self.host.tree.nodes():
            prefix = prefix_to(node)
            tokens = np.frombuffer(prefix.key, np.int32).tolist()
            for index, page in enumerate(prefix.pages):
                if page not in unready:
                    held = [self.copies.host[page, at] for at in range(self.size)]
                    assert held == tokens[index * self.size : (index + 1) * self.size]
            found = self.host.reach(prefix.key, prefix.namespace, 0)
            assert found <= len(prefix.key) // (self.size * TOKEN_BYTES)


TierMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestTiers = TierMachine.TestCase
