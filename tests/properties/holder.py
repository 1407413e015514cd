"""A lease as the tests of the owners of pages believe in it."""

from dataclasses import dataclass

from scheduler.kv_cache import Lease

SLOTS = 4
"""Requests that may hold a lease at once."""


@dataclass(slots=True, eq=False)
class Holder:
    """A lease, the tokens it stands for, and how many of them have been written."""

    lease: Lease
    tokens: list[int]
    written: int
