"""The pages that explain a section of the launch file explain all of it."""

import re
from pathlib import Path
from typing import get_args

import pytest

from configs.schema import Cache, Distributed, Eviction, OrderName, Scheduler, Section

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("page", "section", "values"),
    [("scheduling.md", Scheduler, OrderName), ("memory.md", Cache, Eviction), ("hosts.md", Distributed, None)],
)
def test_every_key_of_the_section_and_every_choice_is_on_its_page(
    page: str, section: type[Section], values: object
) -> None:
    named = set(re.findall(r"`([\w.-]+)", (DOCS / page).read_text()))
    named |= {name.rpartition(".")[2] for name in named}
    assert {*section.__struct_fields__, *get_args(values)} <= named
