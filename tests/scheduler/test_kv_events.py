"""What a subscriber knows of the cache is what the cache holds."""

import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.hybrid import needed_pages
from model.interface import PageId
from scheduler.assembly import assemble
from scheduler.cache_listener import FULL_GROUP, CacheListener, Medium
from scheduler.commands import Command, FlushCache, Generate, Shutdown
from scheduler.hybrid_cache import HybridCache
from scheduler.kv_cache import KVCache, Lease
from scheduler.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, KVEvent, KVEvents
from scheduler.kv_publisher import KVPublisher, binds, endpoint_of
from scheduler.kv_subscriber import CacheContent, Subscriber
from scheduler.loop import run
from scheduler.page_allocator import PageAllocator
from scheduler.page_hash import chain_start, short_hash
from scheduler.page_owner import PageOwner
from scheduler.radix_cache import RadixCache
from scheduler.slots import Slots
from scheduler.tick import Tick
from scheduler.window_pages import WindowPages
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.strategies import TWO_TOKENS, Workload, workloads

# document: M-3, M-21


def chained(namespace: bytes, tokens: list[int], page_size: int) -> list[int]:
    """The hashes of a prefix, written down as SGLang computes them."""
    digest = sha256(b"radjax-namespace-v1\0" + namespace).digest() if namespace else b""
    hashes: list[int] = []
    for at in range(0, len(tokens) // page_size * page_size, page_size):
        hasher = sha256()
        hasher.update(digest)
        for token in tokens[at : at + page_size]:
            hasher.update(token.to_bytes(4, "little"))
        digest = hasher.digest()
        value = int(digest.hex()[:16], 16)
        hashes.append(value - 2**64 if value >= 2**63 else value)
    return hashes


def content_of(cache: RadixCache, page_size: int) -> dict[PageId, int]:
    """The hash of every page of a tree, found by walking it."""
    found: dict[PageId, int] = {}
    for node in cache.nodes():
        key, above = node.key, node
        while above.parent is not None and above.parent.parent is not None:
            above = above.parent
            key = above.key + key
        namespace = above.link[: -4 * page_size]
        hashes = chained(namespace, np.frombuffer(key, np.int32).tolist(), page_size)
        found.update(zip(node.pages, hashes[-len(node.pages) :], strict=True))
    return found


def check_chain(event: BlockStored, page_size: int, digests: dict[int, bytes]) -> None:
    """Every block of an event follows from the one before, the first one from the parent."""
    assert event.block_size == page_size
    assert len(event.token_ids) == page_size * len(event.block_hashes)
    key = np.array(event.token_ids, np.int32).tobytes()
    starts = [chain_start(b""), chain_start(b"\0n")]
    if event.parent_block_hash is not None:
        starts = [digests[event.parent_block_hash]]
    chains: list[list[bytes]] = []
    for digest in starts:
        chain: list[bytes] = []
        for at in range(0, len(key), 4 * page_size):
            digest = sha256(digest + key[at : at + 4 * page_size]).digest()
            chain.append(digest)
        chains.append(chain)
    found = [chain for chain in chains if [short_hash(digest) for digest in chain] == event.block_hashes]
    assert len(found) == 1
    digests.update(zip(event.block_hashes, found[0], strict=True))


STEP = st.tuples(
    st.sampled_from(["open", "open", "write", "write", "write", "close", "flush", "publish"]),
    st.integers(0, 3),
    st.lists(TWO_TOKENS, min_size=1, max_size=9),
    st.sampled_from([b"", b"", b"\0n"]),
)


class Owner:
    """Leases that come and go on a pool that starves; with a window, on two of them."""

    def __init__(self, page_size: int, num_pages: int, window: int, events: CacheListener) -> None:
        self.size = page_size
        self.tree = RadixCache(page_size, listener=events)
        pages = PageAllocator(num_pages)
        full = KVCache(pages, Slots(4), self.tree, page_size, num_pages)
        self.window = WindowPages(PageAllocator(max(2, num_pages // 2)), needed_pages(window, page_size))
        self.kv: PageOwner = HybridCache(full, pages, self.tree, self.window, events) if window else full
        self.leases: list[tuple[Lease, list[int]]] = []

    def do(self, what: str, index: int, tokens: list[int], namespace: bytes) -> None:
        if what == "open" and self.kv.free_slots:
            lease = self.kv.open(np.array(tokens, np.int32), namespace)
            self.leases.append((lease, tokens[: lease.capacity]))
        elif what == "flush":
            self.kv.flush()
        elif self.leases:
            lease, known = self.leases[index % len(self.leases)]
            if what == "write" and min(self.kv.available()) >= -(-len(tokens) // self.size) + 1:
                known += tokens
                self.kv.grow(lease, len(known))
            tail = np.array(known[lease.published * self.size :], np.int32)
            if what == "close":
                self.leases.remove((lease, known))
                self.kv.close(lease, tail)
            elif what != "publish" or index % 2:
                self.kv.publish(lease, tail)


@settings(max_examples=300, deadline=None)
@given(
    page_size=st.integers(1, 3),
    num_pages=st.integers(4, 20),
    window=st.sampled_from([0, 0, 1, 3, 6]),
    steps=st.lists(STEP, min_size=15, max_size=60),
)
def test_the_events_of_any_work_rebuild_the_tree_and_the_window_pages_beside_it(
    page_size: int, num_pages: int, window: int, steps: list[tuple[str, int, list[int], bytes]]
) -> None:
    content, digests = CacheContent(), dict[int, bytes]()

    def publish(events: list[KVEvent]) -> None:
        batch = msgspec.msgpack.encode(EventBatch(1.0, events))
        for event in msgspec.msgpack.decode(batch, type=EventBatch).events:
            content.apply(event)
            if isinstance(event, BlockStored):
                check_chain(event, page_size, digests)

    events = KVEvents(page_size, 1, publish)
    owner = Owner(page_size, num_pages, window, events)
    for step in [*steps, ("publish", 0, [0], b"")]:
        owner.do(*step)
        if step[0] == "publish":
            events.flush()
            hashes = content_of(owner.tree, page_size)
            assert content.blocks.get(("GPU", None), set()) == set(hashes.values())
            assert content.blocks.get(("GPU", 1), set()) == {hashes[page] for page in owner.window.cached()}
    owner.kv.check()


class Model:
    """A listener that believes what it is told, page by page, and knows nothing of hashes of pages."""

    def __init__(self, events: KVEvents, page_size: int) -> None:
        self.events = events
        self.size = page_size
        self.pages: dict[tuple[str, int, int], tuple[bytes, list[int]]] = {}

    def stored(
        self,
        namespace: bytes,
        parent: PageId | None,
        key: bytes,
        pages: Sequence[PageId],
        medium: Medium = "GPU",
        group: int = FULL_GROUP,
    ) -> None:
        tokens = list(self.pages[medium, FULL_GROUP, parent][1]) if parent is not None else []
        for index, page in enumerate(pages):
            tokens = tokens + np.frombuffer(key, np.int32)[index * self.size : (index + 1) * self.size].tolist()
            assert (medium, group, page) not in self.pages
            assert group == FULL_GROUP or self.pages[medium, FULL_GROUP, page] == (namespace, tokens)
            self.pages[medium, group, page] = namespace, tokens
        self.events.stored(namespace, parent, key, pages, medium, group)

    def removed(self, pages: Sequence[PageId], medium: Medium = "GPU", group: int = FULL_GROUP) -> None:
        for page in pages:
            del self.pages[medium, group, page]
        self.events.removed(pages, medium, group)

    def agrees(self, content: CacheContent) -> bool:
        """Whether it and a subscriber believe the same."""
        believed: dict[tuple[str, int | None], set[int]] = {place: set() for place in content.blocks}
        for (medium, group, _), (namespace, tokens) in self.pages.items():
            believed.setdefault((medium, group or None), set()).add(chained(namespace, tokens, self.size)[-1])
        return believed == content.blocks


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(workload=workloads(), interval=st.integers(1, 50))
def test_an_engine_that_rests_has_published_all_that_happened(workload: Workload, interval: int) -> None:
    content = CacheContent()
    size = workload.shapes.page_size
    events = KVEvents(size, interval, lambda batch: [content.apply(event) for event in batch] and None)
    model = Model(events, size)
    script = {turn: list(commands) for turn, commands in workload.script.items()}
    script[10_000] = [(0, FlushCache(call="f"))]
    script[20_000] = [(0, Shutdown())]
    seen: list[bool] = []

    class Resting(ScriptedPort):
        def wait(self, limit_s: float | None = None) -> Tick:
            seen.append(model.agrees(content))
            return super().wait(limit_s)

    engine = assemble(Resting(script), KVEchoRunner(workload.shapes), workload.settings, (events,), listener=model)
    run(engine, workload.settings.depth)
    assert seen
    assert all(seen)
    assert len(content) == 0


def batches_of(interval: int, script: dict[int, list[Command]]) -> list[list[KVEvent]]:
    found: list[list[KVEvent]] = []
    events = KVEvents(SHAPES.page_size, interval, found.append)
    turns = {turn: [(0, command) for command in commands] for turn, commands in script.items()}
    port = ScriptedPort({**turns, 900: [(0, Shutdown())]})
    settings = msgspec.structs.replace(SETTINGS, adapters=("x",))
    run(assemble(port, KVEchoRunner(SHAPES), settings, (events,), listener=events), SETTINGS.depth)
    return found


def test_events_come_with_prefill_steps_and_every_so_many_decode_steps_and_when_the_engine_rests() -> None:
    script: dict[int, list[Command]] = {0: [ask("a", [1, 2, 3, 4, 5], 20)]}
    often, seldom = batches_of(4, script), batches_of(1000, script)
    assert len(seldom) == 2  # the prompt's pages with the prefill step, the output's at the end
    assert len(often) > 4
    first = seldom[0][0]
    assert isinstance(first, BlockStored)
    assert first.token_ids == [1, 2, 3, 4]
    assert first.block_hashes == chained(b"", [1, 2, 3, 4], SHAPES.page_size)
    assert first.parent_block_hash is None
    stored = [event for batch in often for event in batch if isinstance(event, BlockStored)]
    assert len([page for event in stored for page in event.block_hashes]) == 12
    pairs = zip(stored, stored[1:], strict=False)
    assert all(later.parent_block_hash == event.block_hashes[-1] for event, later in pairs)


def test_a_flush_is_one_event() -> None:
    script: dict[int, list[Command]] = {0: [ask("a", [1, 2, 3], 3)], 100: [FlushCache(call="f")]}
    assert batches_of(1000, script)[-1] == [AllBlocksCleared()]


def test_namespaces_keep_equal_tokens_apart() -> None:
    def first(request: Generate) -> tuple[int, str | None]:
        event = batches_of(1, {0: [request]})[0][0]
        assert isinstance(event, BlockStored)
        return event.block_hashes[0], event.lora_name

    plain = ask("a", [1, 2, 3], 2)
    salted = msgspec.structs.replace(plain, cache_salt="s")
    adapted = msgspec.structs.replace(salted, adapter="x")
    assert first(salted) == first(msgspec.structs.replace(salted, rid="b"))
    assert len({first(request)[0] for request in (plain, salted, adapted)}) == 3
    assert [first(request)[1] for request in (plain, salted, adapted)] == [None, None, "x"]


def test_the_format_is_the_one_of_the_field() -> None:
    events: list[KVEvent] = [
        BlockStored([-5, 6], None, [1, 2], 1, lora_name="a"),
        BlockRemoved([6], "CPU_PINNED"),
        BlockRemoved([6], "GPU", 1),
        AllBlocksCleared(),
    ]
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(EventBatch(2.5, events, 1)))
    assert plain == [
        2.5,
        [
            ["BlockStored", [-5, 6], None, [1, 2], 1, None, "GPU", "a", None, None],
            ["BlockRemoved", [6], "CPU_PINNED", None],
            ["BlockRemoved", [6], "GPU", 1],
            ["AllBlocksCleared"],
        ],
        1,
    ]


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


def stored(number: int) -> list[KVEvent]:
    return [BlockStored([number], None, [number], 1)]


def test_what_a_subscriber_missed_it_gets_again_in_order(context: "zmq.Context[zmq.SyncSocket]") -> None:
    with tempfile.TemporaryDirectory() as folder:
        here, again = f"ipc://{folder}/events", f"ipc://{folder}/replay"
        publisher = KVPublisher(context, here, again, "kv@a", 4, clock=lambda: 7.0)
        for number in range(6):  # nobody listens yet, and the first two are forgotten
            publisher.publish(stored(number))
        subscriber = Subscriber(context, here, again, "kv@")
        got = subscriber.catch_up()
        assert [number for number, _ in got] == [2, 3, 4, 5]
        assert got[0][1] == EventBatch(7.0, stored(2), None)
        assert subscriber.lost == 2
        while not (live := subscriber.receive(0.05)):  # until the subscription has arrived
            publisher.publish(stored(9))
        first = live[-1][0]
        assert [number for number, _ in live] == list(range(6 + subscriber.lost - 2, first + 1))
        publisher.publish(stored(10))
        assert subscriber.receive(5.0) == [(first + 1, EventBatch(7.0, stored(10), None))]
        subscriber.close()
        publisher.close()


def test_a_question_that_makes_no_sense_is_passed_over(context: "zmq.Context[zmq.SyncSocket]", tmp_path: Path) -> None:
    publisher = KVPublisher(context, f"ipc://{tmp_path}/e", f"ipc://{tmp_path}/r", "", 4)
    publisher.publish(stored(1))
    with context.socket(zmq.DEALER) as asking:
        asking.connect(f"ipc://{tmp_path}/r")
        asking.send(b"what")
        asking.send_multipart((b"", b"\0" * 8))
        assert asking.poll(5000)
        assert asking.recv_multipart()[1] == b"\0" * 8
        assert asking.recv_multipart() == [b"", b"\xff" * 8, b""]
    publisher.close()


def test_an_address_that_cannot_be_used_is_a_mistake_of_the_configuration(
    context: "zmq.Context[zmq.SyncSocket]", tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="kv_events_endpoint"):
        KVPublisher(context, f"ipc://{tmp_path}/absent/e", None, "", 4)
    with pytest.raises(ConfigError, match="kv_events_replay_endpoint"):
        KVPublisher(context, f"ipc://{tmp_path}/e", "nonsense", "", 4)


def test_every_engine_has_its_own_address_and_the_field_decides_who_binds() -> None:
    assert endpoint_of("tcp://*:5557", 0) == "tcp://*:5557"
    assert endpoint_of("tcp://*:5557", 2) == "tcp://*:5559"
    assert endpoint_of("ipc:///run/kv", 1) == "ipc:///run/kv_dp1"
    assert binds("tcp://*:1")
    assert binds("ipc:///run/kv")
    assert not binds("tcp://router:1")
