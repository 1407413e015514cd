"""Launch files for tests."""

from pathlib import Path

import yaml


def write(folder: Path, text: str) -> Path:
    """A launch file with this text."""
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def dump(settings: dict[str, object]) -> str:
    """``section.key`` → value as the text of a launch file."""
    sections: dict[str, dict[str, object]] = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return yaml.safe_dump(sections, allow_unicode=True, width=10_000)
