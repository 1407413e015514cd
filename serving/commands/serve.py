"""``radjax serve CONFIG``: the whole service in the foreground."""

import argparse
from pathlib import Path

from configs.env import process_environment
from configs.load import load
from serving.launcher import launch


def main(argv: list[str]) -> int:
    """Serve until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax serve", description="Serve a model over HTTP from a launch file.")
    parser.add_argument("config", type=Path, help="the launch file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a value")
    parser.add_argument("--port", type=int, help="short for --set serving.port=PORT")
    parser.add_argument("--record", type=Path, metavar="FILE", help="record this run for 'radjax replay'")
    arguments = parser.parse_args(argv)
    overrides: list[str] = arguments.set
    if arguments.port is not None:
        overrides.append(f"serving.port={arguments.port}")
    if arguments.record is not None:
        overrides.append(f"observe.record={arguments.record.absolute()}")
    loaded = load(arguments.config, overrides, process_environment())
    return launch(loaded.config, loaded.name)
