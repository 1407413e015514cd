"""A recording of the real server, planned at its recorded turns: the server's own steps, plans and hit rate.

``python -m tests.benchmarks.replay_of_server FOLDER`` serves ``configs/smollm2-135m.yaml`` on a pool that is too small,
with the host tier below it, to chats of several turns behind two system prompts and to requests that are read, aborted
or abandoned. It prints what the server counted and what ``radjax plan RECORDING`` counts, and fails where they differ.
"""

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path

import httpx2

from scheduler.replay import open_recording, play
from tests.benchmarks.plan_against_server import fetched, server
from tests.benchmarks.soak import plans, run

OVERRIDES = (
    "cache.max_total_tokens=3072",
    "cache.host=true",
    "cache.host_ratio=8",
    "model.context_length=1024",
    "scheduler.max_running_requests=4",
    "scheduler.running_timeout_s=60",
)
SYSTEM = ("You answer in one word. " * 20, "You are a pirate, and you talk like one. " * 12)
QUESTIONS = ("What is the capital of France?", "And of Italy?", "Which of the two is older?")


async def chat(client: httpx2.AsyncClient, number: int) -> None:
    """A conversation; its last turn is sometimes aborted."""
    chance = random.Random(number)
    messages = [{"role": "system", "content": SYSTEM[number % 2]}]
    for turn, question in enumerate(QUESTIONS):
        messages.append({"role": "user", "content": f"{question} (I am guest {number}.)"})
        rid = f"chat-{number}-{turn}"
        body = {"model": "smollm2-135m", "messages": messages, "max_tokens": 24, "rid": rid}
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        if turn == 2 and chance.random() < 0.5:
            await asyncio.wait([asking], timeout=1)
            await client.post("/abort_request", json={"rid": rid})
        reply = (await asking).json()["choices"][0]["message"]["content"] if (await asking).status_code == 200 else ""
        messages.append({"role": "assistant", "content": reply or "..."})


async def load(url: str, chats: int, others: int) -> None:
    """Chats and the rest, at the same time."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        rest = run(url, plans(others, 1, 300, 24, 1000), 6)
        await asyncio.gather(rest, *(chat(client, number) for number in range(chats)))


def counted(url: str) -> dict[str, float]:
    """By the server: steps, the share of prompt tokens that came from the cache, tokens brought back from the host."""
    found: dict[str, float] = {}
    for line in (fetched(f"{url}/metrics") or "").splitlines():
        name, _, value = line.rpartition(" ")
        name = name.partition("{")[0].removeprefix("radjax_").removesuffix("_total")
        found[name] = found.get(name, 0.0) + float(value) if not line.startswith("#") else found.get(name, 0.0)
    steps = sum(found[f"{family}_steps"] for family in ("decode", "mixed", "score"))
    hit_rate = found["prefix_cache_hits"] / found["prefix_cache_queries"]
    retractions = found["num_retracted_requests"]
    return {"steps": steps, "hit_rate": round(hit_rate, 6), "retractions": retractions} | {
        name: found[name] for name in ("evicted_tokens", "load_back_tokens")
    }


def main(argv: list[str]) -> int:
    """Serve, replay, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chats", type=int, default=6)
    parser.add_argument("--others", type=int, default=40)
    parser.add_argument("--port", type=int, default=31350)
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(exist_ok=True)
    path = arguments.folder / "mixed.recording"
    with server(arguments.port, path, OVERRIDES) as url:
        asyncio.run(load(url, arguments.chats, arguments.others))
        served = counted(url)
    replayed = play(open_recording(path))
    figures = replayed.meter.figures("recorded", 1.0)
    planned = {
        "steps": float(figures.steps),
        "hit_rate": figures.hit_rate,
        "retractions": float(figures.retractions),
        "evicted_tokens": float(figures.evicted_tokens),
    }
    print(json.dumps({"served": served, "planned": planned, "plans_equal": replayed.compared}))
    return 0 if planned.items() <= served.items() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
