"""Our own source files, and what each of them imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("configs", "sharding", "model", "scheduler", "serving")
"""From the lowest to the highest: each may import itself and those before it."""


@dataclass(slots=True, frozen=True)
class Source:
    """One module."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


def sources(*folders: str) -> list[Source]:
    """Every module below ``folders``."""
    found: list[Source] = []
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found.append(Source(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of all that is imported, wherever the statement stands; ``a.b.c`` for ``from a.b import c``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reaches(imported: str, package: str) -> bool:
    """Whether importing ``imported`` imports something of ``package``."""
    return imported == package or imported.startswith(f"{package}.")
