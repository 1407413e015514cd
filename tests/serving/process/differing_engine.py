"""The real engine process, which on host 1 is told to plan smaller prompt pieces than host 0 was."""

import os
import sys

from msgspec import structs

from scheduler.main import main
from scheduler.start import EngineStart, exit_with_parent, read_start, write_start

PIECE_TOKENS = 16


def altered(start: EngineStart) -> EngineStart:
    """What this process makes of what the launcher said."""
    if not start.config.distributed.rank:
        return start
    scheduler = structs.replace(start.config.scheduler, max_prefill_tokens=PIECE_TOKENS)
    return structs.replace(start, config=structs.replace(start.config, scheduler=scheduler))


if __name__ == "__main__":
    start = read_start(sys.stdin.buffer, EngineStart)
    exit_with_parent(sys.stdin.buffer)
    reading, writing = os.pipe()
    sys.stdin = os.fdopen(reading)
    with os.fdopen(writing, "wb") as lifeline:
        write_start(lifeline, altered(start))
        sys.exit(main())
