"""Cost of match and insert by length of the key and by number of cached nodes.

``radjax bench radix``; prints JSON. Times are microseconds, medians of many.
"""

import argparse
import json
import statistics
import time

import numpy as np

from model.interface import PageId
from scheduler.radix_cache import RadixCache

PAGE_SIZE = 16
SHARED_PAGES = 4
ROUNDS = 200
EVICTIONS = 20
PAGES_EVICTED = 20


def filled(nodes: int) -> RadixCache:
    """A tree of at least ``nodes`` nodes: many tails below shared prefixes."""
    rng = np.random.default_rng(0)
    tree, page = RadixCache(PAGE_SIZE), 1
    while tree.num_nodes < nodes:
        prefix = rng.integers(0, 50_000, SHARED_PAGES * PAGE_SIZE, np.int32)
        for _ in range(32):
            key = np.concatenate([prefix, rng.integers(0, 50_000, PAGE_SIZE, np.int32)]).tobytes()
            count = SHARED_PAGES + 1
            tree.extend(tree.root, key, [PageId(page + index) for index in range(count)], b"")
            page += count
    return tree


def timed_us(times: list[float], calls: int = 1) -> float:
    """Median of seconds, as microseconds a call."""
    return round(statistics.median(times) * 1e6 / calls, 2)


def measure(nodes: int, tokens: int) -> dict[str, float | int]:
    """Insert new keys of ``tokens`` tokens, match them again, then evict as many pages."""
    tree = filled(nodes)
    num_nodes = tree.num_nodes
    rng = np.random.default_rng(1)
    inserts, matches, evictions = list[float](), list[float](), list[float]()
    count = tokens // PAGE_SIZE
    keys = [rng.integers(0, 50_000, tokens, np.int32).tobytes() for _ in range(ROUNDS)]
    for index, key in enumerate(keys):
        pages = [PageId(10**8 + index * count + page) for page in range(count)]
        start = time.perf_counter()
        tree.extend(tree.root, key, pages, b"")
        inserts.append(time.perf_counter() - start)
    for key in keys:
        start = time.perf_counter()
        node = tree.match(key, b"").node
        tree.lock(node)
        tree.unlock(node)
        matches.append(time.perf_counter() - start)
    for _ in range(EVICTIONS):
        start = time.perf_counter()
        tree.evict(PAGES_EVICTED)
        evictions.append(time.perf_counter() - start)
    return {
        "nodes": num_nodes,
        "tokens": tokens,
        "insert_us": timed_us(inserts),
        "match_lock_unlock_us": timed_us(matches),
        "evict_page_us": timed_us(evictions, PAGES_EVICTED),
    }


def main(argv: list[str]) -> int:
    """Print one JSON object a line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax bench radix", description=main.__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10**3, 10**4, 10**5], help="cached nodes")
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 1024, 8192], help="tokens of a key")
    arguments = parser.parse_args(argv)
    if min(arguments.nodes) < 1 or min(arguments.tokens) < PAGE_SIZE:
        parser.error(f"at least one node and {PAGE_SIZE} tokens")
    for nodes in arguments.nodes:
        for tokens in arguments.tokens:
            print(json.dumps(measure(nodes, tokens)), flush=True)
    return 0
