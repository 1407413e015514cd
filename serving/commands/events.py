"""``radjax events tail``: follow the events of an engine's KV cache, and keep count of what it holds."""

import argparse
from collections.abc import Callable

import msgspec
import zmq

from scheduler.kv_events import BlockRemoved, BlockStored, KVEvent, place_of
from scheduler.kv_subscriber import CacheContent, Subscriber

FAILED = 1


def main(argv: list[str], write: Callable[[str], None] = print) -> int:
    """Print every event until Ctrl-C, or until ``--count`` batches have come."""
    parser = argparse.ArgumentParser(prog="radjax events", description="Events of the KV cache (observe.kv_events_*).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    tail = commands.add_parser("tail", help="print events and what they add up to")
    tail.add_argument("endpoint", help="address where the engine publishes, as in observe.kv_events_endpoint")
    tail.add_argument("--replay", metavar="ENDPOINT", help="address where missed batches can be asked for")
    tail.add_argument("--topic", default="", help="beginning of the topics that are wanted")
    tail.add_argument("--count", type=int, metavar="N", help="leave after so many batches")
    tail.add_argument("--timeout", type=float, metavar="SECONDS", help="leave when nothing has come for this long")
    arguments = parser.parse_args(argv)
    with zmq.Context() as context:
        subscriber = Subscriber(context, arguments.endpoint, arguments.replay, arguments.topic)
        try:
            return _follow(subscriber, arguments.count, arguments.timeout, write)
        except zmq.ZMQError as error:
            write(f"radjax events: {error.strerror}")
            return FAILED
        except msgspec.DecodeError as error:
            write(f"radjax events: this is no batch of KV events: {error}")
            return FAILED
        finally:
            subscriber.close()


def _follow(subscriber: Subscriber, count: int | None, timeout_s: float | None, write: Callable[[str], None]) -> int:
    content, seen, lost = CacheContent(), 0, 0
    batches = subscriber.catch_up()
    while True:
        for number, batch in batches:
            for event in batch.events:
                content.apply(event)
                write(f"{number} {_describe(event)}")
            held = ", ".join(f"{len(blocks)} on {place}" for place, blocks in sorted(_named(content).items()))
            write(f"{number} cache: {held or 'empty'}")
        seen += len(batches)
        if subscriber.lost > lost:
            write(f"radjax events: {subscriber.lost - lost} batches are lost; the count is no longer exact")
            lost = subscriber.lost
        if count is not None and seen >= count:
            return 0
        batches = subscriber.receive(timeout_s)
        if not batches:
            return 0


def _named(content: CacheContent) -> dict[str, set[int]]:
    return {_name(*place): blocks for place, blocks in content.blocks.items()}


def _name(medium: str, group: int | None) -> str:
    return medium if group is None else f"{medium}, page group {group}"


def _describe(event: KVEvent) -> str:
    match event:
        case BlockStored():
            parent = "the start" if event.parent_block_hash is None else f"{event.parent_block_hash:x}"
            hashes = " ".join(f"{page:x}" for page in event.block_hashes)
            return f"stored on {_name(*place_of(event))} after {parent}, {len(event.token_ids)} tokens: {hashes}"
        case BlockRemoved():
            return f"removed from {_name(*place_of(event))}: {' '.join(f'{page:x}' for page in event.block_hashes)}"
        case _:
            return "all blocks cleared"
