"""A step padded to a larger program of its kind."""

from dataclasses import asdict, replace
from typing import TypeVar

import numpy as np

from model.interface import Family, FullSampling, Sampling, Shapes, StepInput

Group = TypeVar("Group", Sampling, FullSampling)


def widen(step: StepInput, size: int, shapes: Shapes) -> StepInput:
    """``step`` as a step of the program ``size``, which is at least ``step.size``."""
    old, new = shapes.rows(step.family, step.size), shapes.rows(step.family, size)
    # new rows go behind the decode rows, in front of the prompt pieces
    at = old - shapes.max_pieces if step.family is Family.MIXED else old

    def rows(x: np.ndarray, fill: int = 0) -> np.ndarray:
        block = np.full((new - old, *x.shape[1:]), fill, x.dtype)
        return np.concatenate([x[:at], block, x[at:]])

    def group(values: Group, fills: dict[str, int]) -> Group:
        return type(values)(**{name: rows(column, fills.get(name, 0)) for name, column in asdict(values).items()})

    return replace(
        step,
        size=size,
        tokens=np.pad(step.tokens, (0, size - step.tokens.size)),
        slots=rows(step.slots),
        starts=rows(step.starts),
        lengths=rows(step.lengths),
        offsets=rows(step.offsets),
        sample=rows(step.sample),
        page_tables=tuple(rows(table) for table in step.page_tables),
        sampling=group(step.sampling, {"top_p": 1}),
        full=step.full and group(step.full, {"repetition": 1, "bias_ids": -1, "banned_ids": -1, "bitmask": -1}),
    )
