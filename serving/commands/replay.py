"""``radjax replay FILE``: run a recording again and compare every plan, byte for byte."""

import argparse
import sys
from pathlib import Path

import msgspec

from scheduler.replay import ReplayError, open_recording, play


def main(argv: list[str]) -> int:
    """Replay; returns 0 when all plans are the same."""
    parser = argparse.ArgumentParser(prog="radjax replay", description=__doc__)
    parser.add_argument("file", type=Path, help="what 'radjax serve --record FILE' wrote")
    parser.add_argument("--timeline", type=Path, metavar="OUT.json", help="write what the live page opens; no prompts")
    arguments = parser.parse_args(argv)
    try:
        played = play(open_recording(arguments.file))
        if arguments.timeline is not None:
            arguments.timeline.write_bytes(msgspec.json.encode(played.timeline.file()))
    except (ReplayError, OSError) as error:
        print(f"radjax replay: {arguments.file}: {error}", file=sys.stderr)
        return 1
    print(f"{played.compared} plans are the same")
    return 0
