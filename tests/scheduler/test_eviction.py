"""The eviction policies one by one, their queue, and the namespaces that keep prefixes apart."""

from dataclasses import dataclass
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Eviction
from scheduler.eviction import POLICIES, EvictionQueue
from scheduler.prefix_cache import namespace, prefix_cache
from scheduler.radix_cache import Hit


@dataclass(eq=False)
class Prefix:
    """What a policy looks at, and what the queue needs."""

    number: int
    born: int = 0
    tick: int = 0
    uses: int = 1
    priority: int = 0
    place: int | None = None


def test_every_name_of_the_launch_file_has_a_policy() -> None:
    assert set(POLICIES) == set(get_args(Eviction))


@pytest.mark.parametrize(
    ("eviction", "order"),
    [
        ("lru", [2, 0, 1, 3]),
        ("mru", [3, 1, 0, 2]),
        ("fifo", [0, 1, 2, 3]),
        ("filo", [3, 2, 1, 0]),
        ("lfu", [0, 3, 2, 1]),
        ("slru", [0, 3, 2, 1]),
        ("priority", [2, 3, 0, 1]),
    ],
)
def test_each_policy_has_its_order(eviction: Eviction, order: list[int]) -> None:
    prefixes = [
        Prefix(0, born=1, tick=6, uses=1, priority=5),
        Prefix(1, born=2, tick=7, uses=3, priority=5),
        Prefix(2, born=3, tick=5, uses=2, priority=-1),
        Prefix(3, born=4, tick=8, uses=1, priority=0),
    ]
    assert [prefix.number for prefix in sorted(prefixes, key=POLICIES[eviction])] == order


def test_segmented_lru_does_not_count_beyond_the_second_use() -> None:
    old, young = Prefix(0, tick=1, uses=9), Prefix(1, tick=2, uses=2)
    assert POLICIES["slru"](old) < POLICIES["slru"](young)
    assert POLICIES["lfu"](old) > POLICIES["lfu"](young)


CHANGES = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["use", "drop"]), st.integers(-3, 3)), max_size=60)


@given(CHANGES, st.sampled_from(sorted(POLICIES)))
def test_the_queue_gives_the_least_of_what_is_in_it(changes: list[tuple[int, str, int]], eviction: Eviction) -> None:
    policy, inside = POLICIES[eviction], set[Prefix]()
    queue: EvictionQueue[Prefix] = EvictionQueue(policy)
    prefixes = [Prefix(number, born=number) for number in range(10)]
    for number, change, value in changes:
        prefix = prefixes[number]
        if change == "use":
            prefix.tick, prefix.uses, prefix.priority = value, prefix.uses + value, prefix.priority - value
            queue.put(prefix)
            inside.add(prefix)
        else:
            queue.drop(prefix)
            inside.discard(prefix)
        assert {each for each in prefixes if each.place is not None} == inside
        assert sorted(each.place for each in inside if each.place is not None) == list(range(len(inside)))
        assert len(queue) == len(inside)
        if inside:
            assert queue.first() is min(inside, key=lambda each: (policy(each), each.number))


PARTS = st.tuples(*[st.none() | st.text("a,\0-1", max_size=4)] * 3)


@given(PARTS, PARTS)
def test_namespaces_are_the_same_exactly_when_their_parts_are(
    one: tuple[str | None, ...], other: tuple[str | None, ...]
) -> None:
    assert (namespace(*one) == namespace(*other)) == (one == other)


def test_a_key_and_an_adapter_are_not_run_together() -> None:
    assert len({namespace("ab", "c"), namespace("a", "bc"), namespace("abc", None), namespace(None, "abc")}) == 4
    assert namespace(None, None) == b""


def test_the_chunk_cache_never_has_anything() -> None:
    cache = prefix_cache("chunk", "lru", 1)
    key = b"\1\0\0\0"
    assert cache.extend(cache.root, key, [], b"").pages == []
    assert cache.peek(key, b"") == Hit(0, 0)
    assert cache.match(key, b"").node is cache.root
    assert (cache.cached, cache.evictable, cache.queued, cache.num_nodes) == (0, 0, 0, 0)
    assert cache.evict(5) == list(cache.nodes()) == []
