"""``radjax bench serve|steps|radix``: measure a running server, the compiled steps, or the prefix tree."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

import msgspec

from serving.bench.client import Server, ServerRefused, model_name
from serving.bench.load import Figures, Target, run, table, warm_up
from serving.bench.workloads import WORKLOADS

ELSEWHERE: Final[Mapping[str, str]] = MappingProxyType(
    {"steps": "serving.commands.bench_steps", "radix": "serving.commands.bench_radix"}
)
"""Modules whose ``main`` measures."""


def main(argv: list[str]) -> int:
    """Run one benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax bench", description=__doc__)
    parser.add_argument("what", choices=("serve", *ELSEWHERE))
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its own arguments; try --help")
    arguments = parser.parse_args(argv)
    if arguments.what == "serve":
        return serve(arguments.rest)
    entry: Callable[[list[str]], int] = import_module(ELSEWHERE[arguments.what]).main
    return entry(arguments.rest)


def serve(argv: list[str]) -> int:
    """Drive a server with the workloads; a table on standard error, JSON lines on standard output."""
    parser = argparse.ArgumentParser(prog="radjax bench serve", description=serve.__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; by default all")
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--model", help="by default the first one that the server lists")
    parser.add_argument("--api-key")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=100, help="of the first round; the next ones count up")
    parser.add_argument("--vocab-size", type=int, default=30_000, help="random token ids are drawn below this")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    if not arguments.url.startswith("http://"):
        parser.error("--url must begin with http://")
    try:
        rows = asyncio.run(_serve(arguments))
    except (OSError, ServerRefused) as error:
        print(f"radjax bench: {arguments.url}: {error}", file=sys.stderr)
        return 1
    return int(any(row.failed for row in rows))


async def _serve(arguments: argparse.Namespace) -> list[Figures]:
    server = Server(arguments.url, arguments.api_key)
    target = Target(server, arguments.model or await model_name(server), arguments.vocab_size)
    rows: list[Figures] = []
    for name in arguments.workloads or WORKLOADS:
        await warm_up(target, WORKLOADS[name])
        for number in range(arguments.rounds):
            rows.append(await run(target, name, WORKLOADS[name], arguments.seed + number))
            print(msgspec.json.encode(rows[-1]).decode(), flush=True)
    print("\n".join(table(rows)), file=sys.stderr)
    return rows
