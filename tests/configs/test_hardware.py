import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.hardware import DEVICES, MAX_DEVICES, parse_machine


@given(st.sampled_from(sorted(DEVICES)), st.integers(1, MAX_DEVICES))
def test_a_machine_is_read_back_from_its_name(name: str, count: int) -> None:
    machine = parse_machine(f"{count}x{name}")
    assert (machine.count, machine.device.name) == (count, name)
    assert parse_machine(machine.name.upper()) == machine


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [("h100", 1, "h100-80g"), ("8xh200", 8, "h200-141g"), ("v5e-64", 64, "v5e"), ("v5p-8", 8, "v5p")],
)
def test_short_names_and_slices_are_understood(text: str, count: int, name: str) -> None:
    machine = parse_machine(text)
    assert (machine.count, machine.device.name) == (count, name)


@pytest.mark.parametrize("text", ["8xh101", "abacus", "", "8 x", "-8xh100", "8xv5e-64"])
def test_unknown_hardware_is_refused_with_the_names_that_are_known(text: str) -> None:
    with pytest.raises(ConfigError, match=r"known are a100-80g, .* v6e") as refused:
        parse_machine(text)
    assert refused.value.key == "--hardware"


def test_a_slip_of_the_pen_is_recognised() -> None:
    with pytest.raises(ConfigError, match=r"did you mean h100-80g\?"):
        parse_machine("8xh100-80gb")


@pytest.mark.parametrize("text", ["0xh100", "5000xh100", "v5e-0"])
def test_a_number_of_devices_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="from 1 to 4096 devices"):
        parse_machine(text)


def test_every_device_says_where_its_figures_are_from() -> None:
    for name, device in DEVICES.items():
        assert device.name == name
        assert device.source
        assert device.network_bytes_per_s <= device.link_bytes_per_s
        assert device.host <= device.island
