"""Writes ``plans.txt``: what the scheduler decides in twenty seeded runs, as one hash each.

    python -m tests.golden.make_plans

A change of scheduling behaviour shows as another hash. Where it is meant, run this and say so in the change.
"""

import hashlib
import random
from pathlib import Path

from model.interface import Shapes
from scheduler.assembly import Settings, assemble
from scheduler.commands import Abort, Command, Generate, SamplingParams, Shutdown
from scheduler.loop import run
from scheduler.observe import Event
from scheduler.planner import Plan
from tests.fakes import KVEchoRunner, ScriptedPort

NUM_RUNS = 20
FILE = Path(__file__).parent / "plans.txt"
EVICTIONS = ("lru", "lfu", "slru", "fifo", "mru", "filo", "priority")
ORDERS = ("fcfs", "lpm", "dfs-weight", "lof", "random", "routing-key")


class PlanHash:
    """An observer: the hash of all decisions that do anything, and how many there were."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def observe(self, event: Event) -> None:
        if isinstance(event, Plan) and not event.idle:
            self.count += 1
            self._hash.update(event.canonical())

    @property
    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:32]


def shapes() -> Shapes:
    return Shapes(
        decode_rows=(1, 2, 4, 8),
        mixed_tokens=(16, 48),
        score_tokens=8,
        max_rows=8,
        max_pieces=3,
        tile=1,
        page_size=4,
        pages_per_row=40,
        vocab_size=60,
    )


def settings(seed: int) -> Settings:
    """The runs differ in depth, order, eviction, admission, and whether pages are short."""
    return Settings(
        context_length=150,
        num_pages=44 if seed % 4 else 160,
        max_rows=8 if seed % 3 else 4,
        depth=seed % 3,
        max_inflight=seed % 3,
        eos_ids=(59,),
        reuse=seed % 7 != 5,
        eviction=EVICTIONS[seed % len(EVICTIONS)],
        order=ORDERS[seed % len(ORDERS)],
        order_seed=seed,
        max_passed_over=(0, 4)[seed % 2],
        mixed=seed % 5 != 3,
        defer_shared_tokens=(0, 8)[seed % 2],
        conservativeness=(1.0, 0.3)[seed % 2],
        priority=("off", "high_first", "low_first")[seed % 3],
        check="every_step",
    )


def script(seed: int) -> dict[int, list[tuple[int, Command]]]:
    """Some thirty requests that share prefixes; now and then one is aborted, scored, or very urgent."""
    draw = random.Random(seed)
    prefixes = [[draw.randrange(50) for _ in range(draw.randrange(8, 40))] for _ in range(4)]
    turns: dict[int, list[tuple[int, Command]]] = {}
    turn = 0
    for number in range(30):
        turn += draw.randrange(5)
        prompt = prefixes[draw.randrange(4)] + [draw.randrange(50) for _ in range(draw.randrange(1, 60))]
        params = SamplingParams(
            max_new_tokens=draw.randrange(1, 30),
            ignore_eos=draw.randrange(2) == 0,
            seed=number,
            prompt_logprobs=1 if draw.randrange(10) == 0 else None,
            logprobs=2 if draw.randrange(8) == 0 else None,
        )
        request = Generate(
            rid=f"r{number}",
            prompt=prompt,
            params=params,
            priority=draw.randrange(-50, 50),
            routing_key=("x", "y", None)[draw.randrange(3)],
            cache_salt="other" if draw.randrange(9) == 0 else None,
        )
        turns.setdefault(turn, []).append((number % 2, request))
        if draw.randrange(8) == 0:
            turns.setdefault(turn + draw.randrange(20), []).append((number % 2, Abort(rid=request.rid)))
    turns[10_000] = [(0, Shutdown())]
    return turns


def line(seed: int) -> str:
    """The run's line in the file."""
    plans, setting = PlanHash(), settings(seed)
    run(assemble(ScriptedPort(script(seed)), KVEchoRunner(shapes()), setting, (plans,)), setting.depth)
    return f"{seed:2} {plans.count:4} {plans.hexdigest}"


if __name__ == "__main__":
    FILE.write_text("".join(f"{line(seed)}\n" for seed in range(NUM_RUNS)))
