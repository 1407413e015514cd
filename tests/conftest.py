import pytest
from hypothesis import settings

from configs.env import process_environment
from tests.compiling import CHEAP

# no test is timed: how fast a shared machine runs says nothing of the code
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# for this process and the engines that tests start, before any of them compiles; what the user has set wins
pytest.MonkeyPatch().setenv("XLA_FLAGS", f"{CHEAP} {process_environment().get('XLA_FLAGS', '')}")

ROOMS = ("properties", "scheduler", "configs", "layout")
"""What runs last, in this order: many short files, which share out evenly what is left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((at for at, room in enumerate(ROOMS, 1) if f"tests/{room}/" in item.nodeid), 0))
