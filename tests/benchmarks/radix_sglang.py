"""The prefix tree beside SGLang's own Python radix cache, on the same token streams.

    pip download --no-deps sglang && unzip -d sglang-files sglang-*.whl
    PYTHONPATH=sglang-files PYTHON-WITH-TORCH -m tests.benchmarks.radix_sglang

Run from the repository root by a Python that has torch, numpy and msgspec; SGLang's other dependencies are not needed:
modules that its cache imports and does not use here are replaced by empty ones. Prompts and rounds are those of
``tests.benchmarks.radix``; ids come as arrays to both (``array("q")`` and int32), pages hold 16 tokens. Prints JSON, a
line for each number of cached pages; times are microseconds, medians. Wanted: insert plus match at least 5 times
as fast.
"""

import json
import sys
from array import array
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import islice
from types import ModuleType
from typing import Any

from tests.benchmarks.radix import PAGE_SIZE, TOKENS, Timer, measure_tree, prompts

REAL = ("sglang.srt", "sglang.srt.mem_cache")
UNUSED = "sglang.srt.mem_cache.memory_pool"
WANTED = 5.0


class Anything(ModuleType):
    """A module that has a class of every name."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


class Empty(MetaPathFinder, Loader):
    """Finds an empty module for every part of SGLang but the caches."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        real = fullname in REAL or (fullname.startswith(REAL[-1] + ".") and fullname != UNUSED)
        return None if real or not fullname.startswith("sglang.") else ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class Allocator:
    """Takes back slots and forgets them."""

    device = "cpu"

    def free(self, slots: object) -> None:
        """Freed."""

    def free_segment(self, slots: object, start_pos: int = 0) -> None:
        """Freed."""


def modules() -> tuple[Any, Any, Any]:
    """torch, SGLang's radix cache and the types of its arguments."""
    package = Anything("sglang")
    package.__path__ = [f"{path}/sglang" for path in sys.path]
    sys.modules["sglang"] = package
    sys.meta_path.insert(0, Empty())
    import_module("sglang.srt.utils.common").__dict__["ceil_align"] = lambda size, to: -(-size // to) * to
    torch = import_module("torch")
    torch.set_num_threads(1)
    caches = "sglang.srt.mem_cache"
    return torch, import_module(f"{caches}.radix_cache"), import_module(f"{caches}.base_prefix_cache")


def measure_sglang(cached: int, torch: Any, radix: Any, ask: Any) -> dict[str, float]:
    """The rounds of ``measure_tree`` with SGLang's cache."""
    tree = radix.RadixCache.create_simulated(mock_allocator=Allocator(), page_size=PAGE_SIZE)
    source, slot = prompts(0), 0
    while tree.evictable_size() < cached * PAGE_SIZE:
        key = radix.RadixKey(array("q", next(source).tolist()))
        tree.insert(ask.InsertParams(key=key, value=torch.arange(slot, slot + TOKENS)))
        slot += TOKENS
    insert, match, evict = Timer(), Timer(), Timer()
    for ids in islice(prompts(1), 100):
        tokens, slots = array("q", ids.tolist()), torch.arange(slot, slot + TOKENS)
        slot += TOKENS
        with insert:
            tree.insert(ask.InsertParams(key=radix.RadixKey(tokens), value=slots))
        with match:
            found = tree.match_prefix(ask.MatchPrefixParams(key=radix.RadixKey(tokens)))
            tree.inc_lock_ref(found.last_device_node)
            tree.dec_lock_ref(found.last_device_node)
        assert found.device_prefix_len == TOKENS
        with evict:
            tree.evict(ask.EvictParams(num_tokens=tree.evictable_size() - cached * PAGE_SIZE))
    return {
        "insert_us": insert.median_us,
        "match_lock_unlock_us": match.median_us,
        "evict_us": evict.median_us,
    }


def main() -> int:
    """Print the table; returns 1 if it is not as fast as wanted."""
    loaded, least = modules(), float("inf")
    for cached in (10**3, 10**4, 10**5, 10**6):
        theirs, ours = measure_sglang(cached, *loaded), measure_tree(cached, "lru")
        both = "insert_us", "match_lock_unlock_us"
        ratio = round(sum(theirs[key] for key in both) / sum(ours[key] for key in both), 2)
        least = min(least, ratio)
        print(json.dumps({"pages": cached, "sglang": theirs, "tree": ours, "times_as_fast": ratio}), flush=True)
    print(f"at least {least} times as fast, wanted {WANTED}", file=sys.stderr)
    return int(least < WANTED)


if __name__ == "__main__":
    sys.exit(main())
