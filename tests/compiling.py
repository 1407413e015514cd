"""How the tests compile: cheaply, unless what the compiler makes of a program is the subject."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

import pytest

CHEAP: Final = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
)
"""``XLA_FLAGS`` with which a tiny program takes a quarter of the time to compile; one that is not tiny runs slowly."""

SHIPPED_HLO: Final[Mapping[str, bool | int]] = MappingProxyType({"xla_cpu_use_fusion_emitters": True})
"""Compiler options with which the optimised HLO is the one that users have; what LLVM does after is not seen."""

SHIPPED: Final[Mapping[str, bool | int]] = MappingProxyType(
    {**SHIPPED_HLO, "xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
)
"""Compiler options with which a program computes, to the last bit, what it does for users."""


@contextmanager
def shipped_to_children() -> Iterator[None]:
    """Processes that begin inside compile as users' do: a real model would run too slowly otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        yield
