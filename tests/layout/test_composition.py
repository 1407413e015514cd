"""Parts are put together and never inherited: the areas of the scheduler cannot grow into one class."""

import ast
from pathlib import Path

import pytest

from tests.layout.sources import ROOMS, Source, sources

# document: O-3

SHAPES = {"Protocol", "Struct", "NamedTuple"}
"""What says how a value or a part looks, and brings no behaviour."""


def bases(tree: ast.Module, module: str) -> dict[str, list[str]]:
    """Full name of every class → full names of its bases."""
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            origin |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    origin |= {node.name: f"{module}.{node.name}" for node in classes}
    return {
        origin[node.name]: [origin.get(base.id, base.id) for base in node.bases if isinstance(base, ast.Name)]
        for node in classes
    }


def inherited(found: list[Source]) -> list[str]:
    """Classes that inherit from a class of ours which is no mere shape."""
    known: dict[str, list[str]] = {}
    for source in found:
        known |= bases(source.tree, source.name)

    def shape(name: str) -> bool:
        return name.rpartition(".")[2] in SHAPES or any(shape(base) for base in known.get(name, ()))

    return [name for name, ups in known.items() if any(base in known and not shape(base) for base in ups)]


def test_no_class_inherits_behaviour_from_another_of_ours() -> None:
    assert inherited(sources(*ROOMS)) == []


@pytest.mark.parametrize(
    ("code", "offence"),
    [
        ("class A: ...\nclass B(A): ...", ["m.B"]),
        ("from typing import Protocol\nclass A(Protocol): ...\nclass B(A): ...", []),
        ("from msgspec import Struct\nclass A(Struct): ...\nclass B(A): ...", []),
        ("class B(ValueError): ...", []),
    ],
)
def test_the_search_finds_what_it_should(code: str, offence: list[str]) -> None:
    assert inherited([Source("m", Path(), ast.parse(code))]) == offence
