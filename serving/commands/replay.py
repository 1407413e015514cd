"""``radjax replay FILE``: run a recording again and compare every plan, byte for byte."""

import argparse
import sys
from pathlib import Path

from scheduler.replay import ReplayError, replay


def main(argv: list[str]) -> int:
    """Replay; returns 0 when all plans are the same."""
    parser = argparse.ArgumentParser(prog="radjax replay", description=__doc__)
    parser.add_argument("file", type=Path, help="what 'radjax serve --record FILE' wrote")
    arguments = parser.parse_args(argv)
    try:
        compared = replay(arguments.file)
    except (ReplayError, OSError) as error:
        print(f"radjax replay: {arguments.file}: {error}", file=sys.stderr)
        return 1
    print(f"{compared} plans are the same")
    return 0
