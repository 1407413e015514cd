"""The ``radjax`` command: finds the sub-command, imports only that one, and turns mistakes into one clear line."""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Final

from configs.errors import ConfigError
from configs.packages import check_packages

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "serve": "serve a model over HTTP from a launch file",
        "chat": "talk to a running server in the terminal",
        "generate": "continue prompts offline, the engine in this process",
        "bench": "measure: serve, steps, radix",
        "config": "show or check a launch file, say what fits where, or print its schema",
        "model": "pull, list or convert models",
        "replay": "run a recording again and compare the plans",
        "events": "follow the KV cache of a running engine",
        "profile": "analyze step records: figures, findings, charts",
        "plan": "simulate a trace with the scheduler of the server and the step times of a machine",
    }
)
"""Sub-command → what it does; each is the module of that name in ``serving.commands``."""

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

Main = Callable[[list[str]], int]


def load_command(name: str) -> Main:
    """``main`` of the sub-command's module."""
    command: Main = import_module(f"serving.commands.{name}").main
    return command


def main(argv: Sequence[str] | None = None, load: Callable[[str], Main] = load_command) -> int:
    """Run one sub-command.

    Args:
      argv: What stands after ``radjax``; by default this process's arguments.
      load: Finds the function of a sub-command.

    Returns:
      The exit status: the sub-command's own, 2 for a mistake in the configuration, 130 after Ctrl-C.
    """
    parser = _parser()
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if arguments.version:
        print(_version())
        return 0
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return MISUSED
    try:
        check_packages()
        status = load(arguments.command)(arguments.rest)
        sys.stdout.flush()  # here, where a reader that has gone is no traceback
        return status
    except ConfigError as error:
        print(f"radjax {arguments.command}: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of a pipe has gone; what Python still holds for it must not be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="radjax",
        description="An LLM inference service compiled by XLA.",
        epilog=f"commands:\n{listing}\n\n'radjax COMMAND --help' says more about one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument("command", metavar="COMMAND", nargs="?", type=_command, help="one of the commands below")
    parser.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="the command's own arguments")
    return parser


def _command(name: str) -> str:
    if name in COMMANDS:
        return name
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
    raise argparse.ArgumentTypeError(f"unknown command {name!r}; {hint}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and rarely wanted

    try:
        return version("radjax")
    except PackageNotFoundError:
        return "not installed: run 'make setup'"
