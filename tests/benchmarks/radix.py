"""The prefix tree beside a plain dictionary of page hashes, at 10³ to 10⁶ cached pages.

``python -m tests.benchmarks.radix``; prints JSON, a line for each number of cached pages and each eviction policy
asked for. Ids come as int32 arrays, pages hold 16 tokens, prompts 2,000, of which the first 1,008 are common to four.
Times are microseconds, medians. The dictionary hashes each page with the hash of what comes before it, which is all
that it does: no sharing of pages, no locks, no order of eviction but that of insertion. ``ratio`` is insert, match,
lock and unlock of the tree over the dictionary's insert alone; wanted: at most 3. By number of nodes and length
of the key: ``radjax bench radix``.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from model.interface import Int32, PageId
from scheduler.eviction import POLICIES
from scheduler.radix_cache import RadixCache

PAGE_SIZE = 16
TOKENS = 2_000
COMMON = 1_008
SHARING = 4
PAGES = TOKENS // PAGE_SIZE
ROUNDS = 200
WANTED = 3.0


def prompts(seed: int) -> Iterator[Int32]:
    """Endless prompts, four in a row on one prefix."""
    rng = np.random.default_rng(seed)
    while True:
        common = rng.integers(0, 50_000, COMMON, np.int32)
        for _ in range(SHARING):
            yield np.concatenate([common, rng.integers(0, 50_000, TOKENS - COMMON, np.int32)])


def hashed(ids: Int32) -> list[int]:
    """The hash of every page with all before it."""
    data, size, last = ids.tobytes(), PAGE_SIZE * 4, 0
    hashes: list[int] = []
    for at in range(0, len(data) - size + 1, size):
        last = hash((last, data[at : at + size]))
        hashes.append(last)
    return hashes


class Timer:
    """Takes one time after another."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.times.append(time.perf_counter() - self._since)

    @property
    def median_us(self) -> float:
        return round(statistics.median(self.times) * 1e6, 2)


def numbered(start: int) -> list[PageId]:
    return [PageId(page) for page in range(start, start + PAGES)]


def measure_tree(cached: int, eviction: str) -> dict[str, float]:
    """Fill the tree, then insert, match and evict a prompt in turn."""
    tree = RadixCache(PAGE_SIZE, next(policy for name, policy in POLICIES.items() if name == eviction))
    source, page = prompts(0), 1
    while tree.cached < cached:
        tree.extend(tree.root, next(source).tobytes(), numbered(page), b"")
        page += PAGES
    insert, match, evict = Timer(), Timer(), Timer()
    for ids in islice(prompts(1), ROUNDS):
        pages = numbered(page)
        page += PAGES
        with insert:
            tree.extend(tree.root, ids.tobytes(), pages, b"")
        with match:
            node = tree.match(ids.tobytes(), b"").node
            tree.lock(node)
            tree.unlock(node)
        with evict:
            tree.evict(tree.cached - cached)
    return {
        "insert_us": insert.median_us,
        "match_lock_unlock_us": match.median_us,
        "evict_us": evict.median_us,
        "nodes": tree.num_nodes,
    }


def measure_dictionary(cached: int) -> dict[str, float]:
    """The same with a dictionary from page hash to page."""
    table: dict[int, int] = {}
    source, page = prompts(0), 1
    while len(table) < cached:
        table.update(zip(hashed(next(source)), numbered(page), strict=True))
        page += PAGES
    insert, match, evict = Timer(), Timer(), Timer()
    for ids in islice(prompts(1), ROUNDS):
        pages = numbered(page)
        page += PAGES
        with insert:
            for key, number in zip(hashed(ids), pages, strict=True):
                table[key] = number
        with match:
            found = [table[key] for key in hashed(ids) if key in table]
        assert found == pages
        with evict:
            for key in list(islice(table, len(table) - cached)):
                del table[key]
    return {"insert_us": insert.median_us, "match_us": match.median_us, "evict_us": evict.median_us}


def main(argv: list[str]) -> int:
    """Print the table; returns 1 if a ratio is above the wanted one."""
    parser = argparse.ArgumentParser(prog="radix", description=__doc__)
    parser.add_argument("--pages", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="cached pages")
    parser.add_argument("--eviction", nargs="+", default=["lru"], choices=sorted(POLICIES))
    arguments = parser.parse_args(argv)
    worst = 0.0
    for cached in arguments.pages:
        plain = measure_dictionary(cached)
        for eviction in arguments.eviction:
            tree = measure_tree(cached, eviction)
            ratio = round((tree["insert_us"] + tree["match_lock_unlock_us"]) / plain["insert_us"], 2)
            worst = max(worst, ratio)
            row = {"pages": cached, "eviction": eviction, "tree": tree, "dictionary": plain, "ratio": ratio}
            print(json.dumps(row), flush=True)
    print(f"worst ratio {worst}, wanted at most {WANTED}", file=sys.stderr)
    return int(worst > WANTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
