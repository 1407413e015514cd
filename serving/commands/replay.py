"""``radjax replay FILE``: run a recording again and compare every plan, byte for byte."""

import argparse
from pathlib import Path

from scheduler.recording import replay


def main(argv: list[str]) -> int:
    """Replay; returns 0 when all plans are the same."""
    parser = argparse.ArgumentParser(prog="radjax replay", description=__doc__)
    parser.add_argument("file", type=Path, help="what 'radjax serve --record FILE' wrote")
    arguments = parser.parse_args(argv)
    report = replay(arguments.file)
    print(report)
    return 0
