"""``radjax config show|check|schema``: what a launch file means, with the origin of every value."""

import argparse
from pathlib import Path

import msgspec

from configs.env import VARIABLES, process_environment
from configs.errors import SECRETS
from configs.load import FIELDS, Loaded, load
from configs.resolve import refuse_unsupported
from configs.schema_json import schema_json


def main(argv: list[str]) -> int:
    """Run ``radjax config``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.action == "schema":
        print(schema_json(), end="")
        return 0
    loaded = load(arguments.config, arguments.set, process_environment())
    if arguments.action == "check":
        refuse_unsupported(loaded.config)
        print(f"{arguments.config}: good")
    else:
        print("\n".join(_table(loaded)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="radjax config",
        description="Show every value of a launch file with its origin, check it, or print the schema for editors.",
        epilog="Later wins: defaults, the file, the environment, --set.\nEnvironment: "
        + "\n             ".join(f"{name} sets {key}" for name, key in VARIABLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, what in (("show", "print every value and where it comes from"), ("check", "say whether it is good")):
        command = actions.add_parser(action, help=what, description=what)
        command.add_argument("config", metavar="CONFIG", type=Path, help="the launch file")
        command.add_argument(
            "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one value; repeatable"
        )
    schema = actions.add_parser("schema", help="print the JSON Schema of launch files")
    schema.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="not needed: all files have one schema")
    return parser


def _table(loaded: Loaded) -> list[str]:
    width = max(map(len, FIELDS))
    shown = {key: _shown(key, loaded.value(key)) for key in FIELDS}
    column = min(max(map(len, shown.values())), 40)
    return [f"{key:<{width}}  {shown[key]:<{column}}  {loaded.origins[key]}" for key in FIELDS]


def _shown(key: str, value: object) -> str:
    if key in SECRETS and value is not None:
        return "(hidden)"
    return msgspec.json.encode(value).decode()
