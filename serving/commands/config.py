"""``radjax config show|check|fit|schema``: what a launch file means, and what of it fits where."""

import argparse
from pathlib import Path

import msgspec

from configs.env import VARIABLES, process_environment
from configs.errors import SECRETS
from configs.hardware import DEVICES, GPU_SHARE, parse_machine
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
    if arguments.action == "fit":
        return _fit(loaded, arguments)
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
    for action, what in (
        ("show", "print every value and where it comes from"),
        ("check", "say whether it is good"),
        ("fit", "say what of the model fits on named hardware, and how fast it could be"),
    ):
        command = actions.add_parser(action, help=what, description=what)
        command.add_argument("config", metavar="CONFIG", type=Path, help="the launch file")
        command.add_argument(
            "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="override one value; repeatable"
        )
        if action == "fit":
            _add_fit(command)
    schema = actions.add_parser("schema", help="print the JSON Schema of launch files")
    schema.add_argument("config", metavar="CONFIG", nargs="?", type=Path, help="not needed: all files have one schema")
    return parser


def _add_fit(command: argparse.ArgumentParser) -> None:
    command.add_argument("--hardware", required=True, help=f"8xh100-80g, v5e-64; known are {', '.join(DEVICES)}")
    command.add_argument(
        "--context", type=int, default=2048, help="tokens of a typical request, prompt and answer (default: 2048)"
    )
    command.add_argument(
        "--memory-share",
        type=float,
        help=f"of a device's memory that the engine gets (default: {GPU_SHARE} on a GPU, as JAX takes; all of a TPU's)",
    )
    command.add_argument("--json", action="store_true", help="print one object in place of the tables")


def _fit(loaded: Loaded, arguments: argparse.Namespace) -> int:
    # Imported here: seconds of jax that the other actions do not need.
    from serving.commands.fit import counted_costs, fit, workload
    from serving.commands.fit_table import report

    machine = parse_machine(arguments.hardware)
    found = fit(loaded, machine, workload(machine, arguments.context, arguments.memory_share), counted_costs)
    print(msgspec.json.encode(found).decode() if arguments.json else "\n".join(report(found)))
    return 0


def _table(loaded: Loaded) -> list[str]:
    width = max(map(len, FIELDS))
    shown = {key: _shown(key, loaded.value(key)) for key in FIELDS}
    column = min(max(map(len, shown.values())), 40)
    return [f"{key:<{width}}  {shown[key]:<{column}}  {loaded.origins[key]}" for key in FIELDS]


def _shown(key: str, value: object) -> str:
    if key in SECRETS and value is not None:
        return "(hidden)"
    return msgspec.json.encode(value).decode()
