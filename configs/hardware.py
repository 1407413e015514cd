"""Named accelerators with their published figures: what ``radjax config fit`` reckons with. Data, and its reading."""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

from configs.errors import ConfigError
from configs.schema import HardwareFacts

MAX_DEVICES: Final = 4096
GPU_SHARE: Final = 0.75
"""What JAX takes of a GPU's memory unless ``XLA_PYTHON_CLIENT_MEM_FRACTION`` says otherwise."""


class Device(Struct, frozen=True, kw_only=True):
    """One accelerator: the vendor's peaks, which no program reaches."""

    name: str
    platform: Literal["gpu", "tpu"]
    memory_bytes: float
    bytes_per_s: float
    """Of its memory."""
    flops_per_s: float
    """Dense bfloat16 products."""
    link_bytes_per_s: float
    """That it sends to its island, over all of its links together, one way."""
    island: int
    """Devices that those links join: a server, or the largest slice."""
    host: int
    """Devices of one host, which is one process."""
    network_bytes_per_s: float
    """That it sends beyond the island, one way."""
    source: str
    """Where the figures are from."""


_DGX: Final = "the network is one adapter a GPU, as in NVIDIA's DGX"
DEVICES: Final[Mapping[str, Device]] = MappingProxyType(
    {
        device.name: device
        for device in (
            Device(
                name="a100-80g",
                platform="gpu",
                memory_bytes=80e9,
                bytes_per_s=2.039e12,
                flops_per_s=312e12,
                link_bytes_per_s=300e9,
                island=8,
                host=8,
                network_bytes_per_s=25e9,
                source=f"NVIDIA A100 data sheet (SXM4); {_DGX} A100 (200 Gb/s)",
            ),
            Device(
                name="h100-80g",
                platform="gpu",
                memory_bytes=80e9,
                bytes_per_s=3.35e12,
                flops_per_s=989e12,
                link_bytes_per_s=450e9,
                island=8,
                host=8,
                network_bytes_per_s=50e9,
                source=f"NVIDIA H100 data sheet (SXM5; half of what it says with sparsity); {_DGX} H100 (400 Gb/s)",
            ),
            Device(
                name="h200-141g",
                platform="gpu",
                memory_bytes=141e9,
                bytes_per_s=4.8e12,
                flops_per_s=989e12,
                link_bytes_per_s=450e9,
                island=8,
                host=8,
                network_bytes_per_s=50e9,
                source=f"NVIDIA H200 data sheet (SXM5; half of what it says with sparsity); {_DGX} H200 (400 Gb/s)",
            ),
            Device(
                name="b200-180g",
                platform="gpu",
                memory_bytes=180e9,
                bytes_per_s=8e12,
                flops_per_s=2250e12,
                link_bytes_per_s=900e9,
                island=8,
                host=8,
                network_bytes_per_s=50e9,
                source=f"NVIDIA DGX B200 data sheet, an eighth of it (half with sparsity); {_DGX} B200 (400 Gb/s)",
            ),
            Device(
                name="l40s-48g",
                platform="gpu",
                memory_bytes=48e9,
                bytes_per_s=864e9,
                flops_per_s=362e12,
                link_bytes_per_s=32e9,
                island=8,
                host=8,
                network_bytes_per_s=25e9,
                source="NVIDIA L40S data sheet; its link is PCIe 4.0 x16; one adapter of 200 Gb/s a GPU is assumed",
            ),
            Device(
                name="v5e",
                platform="tpu",
                memory_bytes=16e9,
                bytes_per_s=819e9,
                flops_per_s=197e12,
                link_bytes_per_s=200e9,
                island=256,
                host=8,
                network_bytes_per_s=3.125e9,
                source="Google Cloud TPU v5e: half of 400 GB/s both ways over four links; 200 Gb/s a host of eight",
            ),
            Device(
                name="v5p",
                platform="tpu",
                memory_bytes=95e9,
                bytes_per_s=2.765e12,
                flops_per_s=459e12,
                link_bytes_per_s=600e9,
                island=6144,
                host=4,
                network_bytes_per_s=6.25e9,
                source="Google Cloud TPU v5p: half of 1200 GB/s both ways over six links; 50 Gb/s a chip",
            ),
            Device(
                name="v6e",
                platform="tpu",
                memory_bytes=32e9,
                bytes_per_s=1.638e12,
                flops_per_s=918e12,
                link_bytes_per_s=400e9,
                island=256,
                host=8,
                network_bytes_per_s=12.5e9,
                source="Google Cloud TPU v6e: half of 800 GB/s both ways over four links; 4 × 200 Gb/s a host of eight",
            ),
        )
    }
)
_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"a100": "a100-80g", "h100": "h100-80g", "h200": "h200-141g", "b200": "b200-180g", "l40s": "l40s-48g"}
)
"""Short names of GPUs."""


class Machine(Struct, frozen=True):
    """So many of one device."""

    count: int
    device: Device

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.count}x{self.device.name}"

    def facts(self, memory_share: float) -> HardwareFacts:
        """What the engine would find there; ``memory_share`` of a device's memory is its own."""
        return HardwareFacts(
            platform=self.device.platform,
            device_kind=self.device.name,
            num_devices=self.count,
            memory_bytes=int(self.device.memory_bytes * memory_share),
            host_memory_bytes=2**40,
        )


def parse_machine(text: str) -> Machine:
    """Read ``8xh100-80g``, ``h100`` (one of them) or a TPU slice as ``v5e-64``.

    Raises:
      ConfigError: no such device, or no such number of them; the message names those that are known.
    """
    many = re.fullmatch(r"(?:(\d{1,6})x)?([a-z0-9-]+)", text.strip().lower())
    found = (many[1] or "1", _NAMES.get(many[2], many[2])) if many else ("1", text)
    piece = re.fullmatch(r"(v\d[a-z]{0,2})-(\d{1,6})", found[1])
    if piece and many and many[1] is None:
        found = (piece[2], piece[1])
    count, name = int(found[0]), found[1]
    if name not in DEVICES:
        close = difflib.get_close_matches(name, [*DEVICES, *_NAMES], n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            "is no hardware that is known here",
            key="--hardware",
            value=text,
            suggestion=f"{hint}known are {', '.join(DEVICES)}; write 8xh100-80g, or v5e-64",
        )
    if not 1 <= count <= MAX_DEVICES:
        raise ConfigError(
            f"from 1 to {MAX_DEVICES} devices can be reckoned with", key="--hardware", value=text, suggestion="8xh100"
        )
    return Machine(count, DEVICES[name])
