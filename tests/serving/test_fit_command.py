"""``radjax config fit``: what it says is what a server would decide, and what arithmetic says."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from configs.errors import ConfigError
from configs.hardware import DEVICES, Device, Machine, parse_machine
from configs.load import Loaded, load
from configs.resolve import resolve
from configs.schema import Parallel
from model.loading.hf_config import read_config
from model.registry import facts, stage_blueprints
from model.spec import ModelSpec
from model.step_costs import costs_by_formula
from serving.commands.config import main
from serving.commands.fit import Fit, all_divisions, fit, shape_folder, workload
from serving.commands.fit_table import report
from sharding.mesh import build_mesh

CONFIGS = Path(__file__).parents[2] / "configs"
MODELS = Path(__file__).parents[1] / "golden" / "models"


def launch(name: str, *overrides: str) -> Loaded:
    return load(CONFIGS / f"{name}.yaml", overrides, {})


def reckoned(loaded: Loaded, machine: Machine, context: int = 2048) -> Fit:
    return fit(loaded, machine, workload(machine, context, None), costs_by_formula)


def fitted_spec(loaded: Loaded) -> ModelSpec:
    return read_config(shape_folder(loaded.config))


def small(device: Device, memory_bytes: float) -> Device:
    return structs.replace(device, memory_bytes=memory_bytes)


@settings(max_examples=25)
@given(
    st.sampled_from(["llama3-70b", "llama3-8b-dummy", "qwen3-30b-a3b"]),
    st.sampled_from(sorted(DEVICES)),
    st.sampled_from([1, 2, 8, 24, 64]),
)
def test_whatever_is_proposed_uses_every_device_and_fits(name: str, device: str, count: int) -> None:
    machine = Machine(count, DEVICES[device])
    try:
        found = reckoned(launch(name), machine)
    except ConfigError as refused:
        # nothing fits: as many weights as all devices have memory, or a number that divides nothing
        assert refused.key == "--hardware"
        return
    speeds = [one.decode_tokens_per_s for one in found.proposals if one.full_length_requests]
    assert speeds == sorted(speeds, reverse=True)
    for one in found.proposals:
        assert one.tensor * one.stages * one.expert * one.replicas == count
        assert one.weight_bytes + one.kv_bytes <= found.device_bytes
        assert one.longest_request <= one.pool_tokens
        assert one.rows <= max(1, one.typical_requests)


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        ("llama-9-3", Parallel(tensor=2)),
        ("llama", Parallel(stages=2, tensor=2)),
        ("gemma3", Parallel(tensor=2)),
        ("qwen2-moe", Parallel(expert=2, tensor=2)),
    ],
)
def test_pages_are_those_that_a_server_would_have(tmp_path: Path, name: str, parallel: Parallel) -> None:
    (tmp_path / "tiny.yaml").write_text(f"model:\n  source: {MODELS / name}\n")
    sizes = [f"parallel.{key}={structs.asdict(parallel)[key]}" for key in ("tensor", "stages", "expert")]
    loaded = load(tmp_path / "tiny.yaml", sizes, {})
    machine = Machine(4, small(DEVICES["h100-80g"], 64e6))
    found = reckoned(loaded, machine, 64)
    spec = fitted_spec(loaded)
    parts = stage_blueprints(spec, build_mesh(parallel), "bfloat16")
    stages, hardware = [part.stage for part in parts], machine.facts(0.75)
    served = resolve(loaded.config, "tiny", hardware, facts(spec), sum(one.weight_bytes for one in stages), stages)
    assert found.chosen.parallel == structs.replace(parallel, replicas=1)
    # every device has the norms, which the server counts once
    assert served.num_pages * 0.99 <= found.chosen.pages <= served.num_pages


def test_a_configured_division_is_looked_at_closely_and_others_are_proposed() -> None:
    found = reckoned(launch("llama3-70b", "parallel.tensor=4", "parallel.replicas=2"), parse_machine("8xh100"))
    assert found.chosen.parallel == Parallel(tensor=4, replicas=2)
    assert found.proposals[0].parallel == Parallel(tensor=8)
    assert "tensor 4, stages 1, expert 1, replicas 2" in report(found)


def test_repeated_heads_are_shown_as_waste() -> None:
    found = reckoned(launch("llama3-70b", "parallel.tensor=16"), parse_machine("v5e-64"))
    assert found.chosen.wasted_kv == 0.5
    assert any("50% of the KV pages repeats heads" in line for line in report(found))


def test_twice_the_bandwidth_takes_half_the_time_of_memory_and_nothing_else() -> None:
    machine = parse_machine("8xh100")
    faster = Machine(8, structs.replace(machine.device, bytes_per_s=2 * machine.device.bytes_per_s))
    for one, other in zip(*(reckoned(launch("llama3-70b"), each).limits for each in (machine, faster)), strict=True):
        assert other.memory_s == pytest.approx(one.memory_s / 2)
        assert (other.arithmetic_s, other.link_s) == (one.arithmetic_s, one.link_s)
        assert one.seconds == max(one.memory_s, one.arithmetic_s, one.link_s)


def test_shards_beyond_an_island_are_joined_by_the_network() -> None:
    machine = parse_machine("16xh100")
    apart = Machine(16, structs.replace(machine.device, network_bytes_per_s=machine.device.network_bytes_per_s / 2))
    near, far = (reckoned(launch("llama3-70b", "parallel.tensor=16"), each).limits for each in (machine, apart))
    assert [one.link_s * 2 for one in near] == pytest.approx([one.link_s for one in far])


def test_what_fits_nowhere_is_refused_with_the_size_of_the_weights() -> None:
    with pytest.raises(ConfigError, match=r"no division of it holds this model.*the weights are 131 GiB"):
        reckoned(launch("llama3-70b"), parse_machine("1xh100"))
    with pytest.raises(ConfigError, match="more than the devices of 2xh100-80g"):
        reckoned(launch("llama3-8b-dummy", "parallel.tensor=4"), parse_machine("2xh100"))


@pytest.mark.parametrize("source", ["hub:owner/name", "pypi:some-model"])
def test_a_model_whose_shape_is_elsewhere_is_not_downloaded(tmp_path: Path, source: str) -> None:
    (tmp_path / "far.yaml").write_text(f"model:\n  source: {source}\n  cache_dir: {tmp_path}\n")
    with pytest.raises(ConfigError, match=f"radjax model pull {source}"):
        reckoned(load(tmp_path / "far.yaml", [], {}), parse_machine("h100"))


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--memory-share", "0", "a share"),
        ("--memory-share", "1.5", "a share"),
        ("--context", "0", "at least one token"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as refused:
        main(["fit", str(CONFIGS / "llama3-70b.yaml"), "--hardware", "8xh100", option, value])
    assert refused.value.key == option


@given(st.integers(1, 512))
def test_divisions_are_all_different_and_use_all_devices(count: int) -> None:
    spec = fitted_spec(launch("qwen3-30b-a3b"))
    divisions = [*all_divisions(count, spec)]
    assert len({msgspec.json.encode(one) for one in divisions}) == len(divisions)
    assert all(one.devices * one.replicas == count for one in divisions)


def test_the_command_counts_in_the_programs_and_prints_tables_or_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(f"model:\n  source: {MODELS / 'llama'}\n")
    arguments = ["fit", str(tmp_path / "tiny.yaml"), "--hardware", "2xl40s", "--context", "64"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Fit)
    assert table.splitlines() == report(found)
    assert found.machine == parse_machine("2xl40s")
    assert all(one.seconds > 0 for one in found.limits)
