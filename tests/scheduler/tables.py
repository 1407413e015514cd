"""A table of step times of a small model that does not exist."""

from configs.schema import Cache, EngineConfig, Model, Scheduler
from model.interface import Family, Shapes, Variant
from model.ladders import make_shapes
from scheduler.step_times import StepTable, StepTime
from tests.configs.facts import SMOLLM2, cpu

CONFIG = EngineConfig(
    model=Model(source="nowhere", context_length=512),
    cache=Cache(max_total_tokens=4096),
    scheduler=Scheduler(max_running_requests=8, chunk_tokens=64),
)


def times(shapes: Shapes, seconds: float) -> tuple[StepTime, ...]:
    """Every program takes as long."""
    ladder = [(Family.DECODE, size) for size in shapes.decode_rows] + [(Family.MIXED, t) for t in shapes.mixed_tokens]
    names = [(family, variant, size) for variant in Variant for family, size in ladder]
    names.append((Family.SCORE, Variant.LEAN, shapes.score_tokens))
    return tuple(
        StepTime(family=family, variant=variant, size=size, context_tokens=100, seconds=seconds)
        for family, variant, size in names
    )


def table(seconds: float = 0.01) -> StepTable:
    """The table."""
    return StepTable(
        name="small",
        device="imagined",
        config=CONFIG,
        hardware=cpu(),
        model=SMOLLM2,
        weight_bytes=1,
        eos_ids=(2,),
        times=times(make_shapes(8, 64, 16, 512, SMOLLM2.vocab_size), seconds),
    )
