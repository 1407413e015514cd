"""A launch file's text as ``section.key`` → value and line. Knows YAML, and nothing of what the keys mean."""

# PyYAML's stubs leave streams and the constructor's nodes untyped
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from yaml.constructor import SafeConstructor

from configs.errors import ConfigError

MAX_FILE_BYTES: Final = 2**18
MAX_DEPTH: Final = 8


@dataclass(slots=True, frozen=True)
class Entry:
    """A value of the file and the line of its key."""

    value: object
    line: int


def read_entries(path: Path) -> dict[str, Entry]:
    """Every value of the file, by ``section.key``; by its bare key where a value stands outside a section.

    Raises:
      ConfigError: unreadable, too large, not YAML, a key given twice, an alias, or deep nesting.
    """
    where = str(path)
    root = _compose(_read(path), where)
    entries: dict[str, Entry] = {}
    for section, line, node in _pairs(root, where):
        if isinstance(node, yaml.MappingNode):
            for name, child_line, child in _pairs(node, where):
                entries[f"{section}.{name}"] = Entry(_construct(child, where), child_line)
        elif (value := _construct(node, where)) is not None:
            entries[section] = Entry(value, line)
    return entries


def parse_scalar(text: str) -> object:
    """``text`` read as one YAML value, as after a colon in the file.

    Raises:
      ConfigError: not YAML.
    """
    node = _compose(text, "")
    return None if node is None else _construct(node, "")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"is too large: a launch file has at most {MAX_FILE_BYTES} bytes", where=str(path))
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=str(path)) from error


def _compose(text: str, where: str) -> yaml.Node | None:
    depth = 0
    try:
        # the event parser does not recurse, so hostile nesting is refused before the composer does
        events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        for event in events:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                fault = "nesting is too deep" if depth > MAX_DEPTH else "aliases are not taken"
                raise ConfigError(fault, where=f"{where}:{event.start_mark.line + 1}")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", where=where) from error


def _pairs(node: yaml.Node | None, where: str) -> Iterator[tuple[str, int, yaml.Node]]:
    """Keys, their lines and values of a mapping; an empty document has none."""
    if node is None:
        return
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("a launch file is a mapping of sections", where=f"{where}:{_line(node)}")
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        if key in seen:
            raise ConfigError("is given twice", key=key, where=f"{where}:{_line(key_node)}")
        seen.add(key)
        yield key, _line(key_node), value_node


def _construct(node: yaml.Node, where: str) -> object:
    try:
        return SafeConstructor().construct_document(node)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that cannot be one
        raise ConfigError(f"is not a value: {' '.join(str(error).split())}", where=f"{where}:{_line(node)}") from error


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
