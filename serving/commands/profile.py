"""``radjax profile analyze FILE [FILE2]``: what step records say, in figures, words and charts."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.commands.profile_charts import ChartsUnavailable, draw
from serving.commands.profile_findings import findings
from serving.commands.profile_page import page, table
from serving.commands.profile_reading import Reading, ReadingError, read


def main(argv: list[str]) -> int:
    """Analyse; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax profile", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    analyze = commands.add_parser("analyze", help="statistics of a file, or of two side by side")
    analyze.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="step records, ours or vLLM's; at most two"
    )
    analyze.add_argument("--out", type=Path, metavar="DIR", help="also write six charts and a page that holds all")
    arguments = parser.parse_args(argv)
    if len(arguments.files) > 2:
        analyze.error("at most two files are compared")
    try:
        readings = [read(path) for path in arguments.files]
    except ReadingError as error:
        print(f"radjax profile: {error}", file=sys.stderr)
        return 1
    for reading in readings:
        _complain(reading)
    print("\n".join(report(_named_apart(readings))))
    if arguments.out is None:
        return 0
    try:
        return _write(arguments.out, _named_apart(readings))
    except (ChartsUnavailable, OSError) as error:
        print(f"radjax profile: {error}", file=sys.stderr)
        return 1


def report(readings: Sequence[Reading]) -> list[str]:
    """The analysis as lines of text."""
    lines = [f"{reading.name}: {reading.statistics.span}".rstrip(": ") for reading in readings]
    rows = table(readings)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if len(readings) > 1 else rows[1:]:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *cells]))
    for reading in readings:
        prefix = f"{reading.name}: " if len(readings) > 1 else ""
        lines += [prefix + sentence for sentence in findings(reading.statistics)]
    return lines


def _complain(reading: Reading) -> None:
    for complaint in reading.complaints:
        print(f"radjax profile: {complaint}", file=sys.stderr)
    if reading.bad > len(reading.complaints):
        print(f"radjax profile: {reading.name}: {reading.bad} lines are no records", file=sys.stderr)


def _named_apart(readings: Sequence[Reading]) -> list[Reading]:
    """Files of the same name get a number."""
    names = [reading.name for reading in readings]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return [
        Reading(name, reading.statistics, reading.bad, reading.complaints)
        for name, reading in zip(names, readings, strict=True)
    ]


def _write(folder: Path, readings: Sequence[Reading]) -> int:
    charts = draw(readings)
    folder.mkdir(parents=True, exist_ok=True)
    for chart in charts:
        (folder / f"{chart.name}.png").write_bytes(chart.png)
    (folder / "index.html").write_text(page(readings, charts), encoding="utf-8")
    print(f"wrote {len(charts)} charts and {folder / 'index.html'}")
    return 0
