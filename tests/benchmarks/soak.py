"""Thousands of requests of random size and fate against a running server: nothing may hang, leak or fall over.

``python -m tests.benchmarks.soak --url http://127.0.0.1:30000 --requests 2000``. Each streams or not, and is read
to its end, aborted by id, or abandoned. Afterwards every one has ended, nothing runs or waits, and ``/health`` is 200.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

import httpx2

FATES: Final = ("read", "read", "abort", "vanish")
SETTLE_S: Final = 60.0
HANG_S: Final = 300.0


@dataclass(slots=True, frozen=True)
class Plan:
    """One request and what becomes of it."""

    rid: str
    prompt: list[int]
    output_len: int
    stream: bool
    fate: str
    patience_s: float
    """When to abort or vanish."""

    def body(self) -> dict[str, object]:
        """Of POST /generate."""
        sampling = {"max_new_tokens": self.output_len, "ignore_eos": True}
        return {"rid": self.rid, "input_ids": self.prompt, "sampling_params": sampling, "stream": self.stream}


def plans(count: int, seed: int, max_prompt: int, max_output: int, vocab_size: int) -> list[Plan]:
    """Random requests; half of the prompts share one of four beginnings."""
    source = random.Random(seed)
    shared = [[source.randrange(10, vocab_size) for _ in range(max_prompt)] for _ in range(4)]

    def prompt() -> list[int]:
        length = source.randint(1, max_prompt)
        own = [source.randrange(10, vocab_size) for _ in range(length)]
        kept = source.choice([0, source.randint(0, length)])
        return source.choice(shared)[:kept] + own[kept:]

    return [
        Plan(
            rid=f"soak-{seed}-{number}",
            prompt=prompt(),
            output_len=source.randint(1, max_output),
            stream=source.random() < 0.7,
            fate=source.choice(FATES),
            patience_s=source.expovariate(2.0),
        )
        for number in range(count)
    ]


async def run(url: str, todo: list[Plan], concurrency: int) -> Counter[str]:
    """Carry out the plans; how each of them ended.

    Raises:
      TimeoutError: a request hung, or the server did not come to rest.
    """
    ends: Counter[str] = Counter()
    left = iter(todo)
    async with httpx2.AsyncClient(base_url=url, timeout=HANG_S, limits=httpx2.Limits(max_connections=None)) as client:

        async def worker() -> None:
            for plan in left:
                async with asyncio.timeout(HANG_S):
                    ends[await carry_out(client, plan)] += 1

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        await settle(client)
    return ends


async def carry_out(client: httpx2.AsyncClient, plan: Plan) -> str:
    """One request to its end; returns how it ended."""
    if plan.fate == "vanish":
        try:
            async with asyncio.timeout(plan.patience_s):
                return await read(client, plan)
        except TimeoutError:
            return "vanished"
    if plan.fate == "abort":
        reading = asyncio.create_task(read(client, plan))
        await asyncio.wait([reading], timeout=plan.patience_s)
        await client.post("/abort_request", json={"rid": plan.rid})
        return await reading
    return await read(client, plan)


async def read(client: httpx2.AsyncClient, plan: Plan) -> str:
    """Read the answer: its finish reason, ``error``, or the status that refused it."""
    async with client.stream("POST", "/generate", json=plan.body()) as response:
        if response.status_code != 200:
            return f"refused {response.status_code}"
        last: dict[str, object] = {}
        if not plan.stream:
            last = json.loads(await response.aread())
        async for line in response.aiter_lines() if plan.stream else _nothing():
            if line.startswith("data: {"):
                last = json.loads(line.removeprefix("data: "))
    meta = last.get("meta_info")
    if not isinstance(meta, dict):
        return "error"
    reason = meta["finish_reason"]["type"]
    assert reason == "abort" or meta["completion_tokens"] == plan.output_len, f"{plan.rid}: tokens are missing"
    return reason


async def settle(client: httpx2.AsyncClient) -> None:
    """Wait until nothing runs or waits, and the service is healthy."""
    async with asyncio.timeout(SETTLE_S):
        while any(load["num_reqs"] for load in (await client.get("/get_load")).json()):
            await asyncio.sleep(0.2)
    health = await client.get("/health")
    assert health.status_code == 200, health.text


async def _nothing() -> AsyncGenerator[str, None]:
    for line in ():
        yield line


def main(argv: list[str]) -> int:
    """Run it; one JSON line with how requests ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-prompt", type=int, default=300)
    parser.add_argument("--max-output", type=int, default=40)
    parser.add_argument("--vocab-size", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    todo = plans(given.requests, given.seed, given.max_prompt, given.max_output, given.vocab_size)
    started = time.monotonic()
    ends = asyncio.run(run(given.url, todo, given.concurrency))
    print(json.dumps({"requests": len(todo), "seconds": round(time.monotonic() - started, 1), "ends": ends}))
    return 0 if ends.total() == len(todo) and not ends["error"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
