import subprocess
import sys

import pytest

from tests.layout.sources import ROOMS, ROOT, Source, imports, reaches, sources

SOURCES = sources(*ROOMS)
CORE = [source for source in SOURCES if source.room == "scheduler" and source.name != "scheduler.main"]
FRONT = [source for source in SOURCES if source.room == "serving" and not reaches(source.name, "serving.commands")]
WIRE = ("scheduler.commands", "scheduler.channel", "scheduler.start")
COMPOSERS = {"serving.launcher", "serving.llm"}


def offences(source: Source, *packages: str) -> list[str]:
    """What ``source`` imports of ``packages``."""
    return [one for one in imports(source.tree) for package in packages if reaches(one, package)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_no_room_imports_a_room_above_it_or_the_tests(source: Source) -> None:
    above = ROOMS[ROOMS.index(source.room) + 1 :]
    assert offences(source, "tests", *above) == []


@pytest.mark.parametrize("source", CORE, ids=lambda source: source.name)
def test_the_scheduler_knows_of_the_model_only_its_interface(source: Source) -> None:
    assert offences(source, "jax", "jaxlib", "flax", "sharding", "scheduler.main") == []
    assert [one for one in offences(source, "model") if not reaches(one, "model.interface")] == []


@pytest.mark.parametrize("source", FRONT, ids=lambda source: source.name)
def test_the_front_knows_of_the_engine_only_the_wire(source: Source) -> None:
    assert offences(source, "jax", "model", "sharding", "serving.commands") == []
    doors = (*WIRE, "scheduler.main", "scheduler.local_channel") if source.name in COMPOSERS else WIRE
    assert [one for one in offences(source, "scheduler") if not any(reaches(one, door) for door in doors)] == []


@pytest.mark.parametrize("source", sources("configs"), ids=lambda source: source.name)
def test_configuration_stands_on_the_standard_library_msgspec_and_yaml(source: Source) -> None:
    allowed = {"configs", "msgspec", "yaml", *sys.stdlib_module_names}
    assert [one for one in imports(source.tree) if one.split(".")[0] not in allowed] == []


def loaded_after(*modules: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after importing ``modules``."""
    code = f"import {', '.join(modules)}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_importing_the_whole_scheduler_core_loads_no_jax() -> None:
    names = [source.name for source in CORE]
    assert "scheduler.commands" in names
    assert not loaded_after(*names) & {"jax", "jaxlib", "flax", "transformers"}


def test_importing_the_command_line_loads_next_to_nothing() -> None:
    assert not loaded_after("serving.cli") & {"jax", "numpy", "msgspec", "yaml", "starlette", "asyncio", "rich"}


def test_reading_a_launch_file_loads_no_arrays() -> None:
    assert not loaded_after("serving.commands.config", "configs.resolve", "configs.memory") & {"jax", "numpy"}
