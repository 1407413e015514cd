"""Which layers each pipeline stage has, and what cannot be combined with stages. Pure."""

from collections.abc import Sequence

from msgspec import structs

from configs.errors import ConfigError
from configs.schema import EngineConfig, ModelFacts, StageFacts

Stages = Sequence[StageFacts]


def stage_layers(num_layers: int, stages: int) -> tuple[range, ...]:
    """Neighbouring layers for each stage, as evenly as can be; what is left over goes to the first stages.

    The last stage has the head too, and the head of a small model takes as long as several layers.
    """
    assert 0 < stages <= num_layers, "every stage has a layer"
    each, over = divmod(num_layers, stages)
    starts = [stage * each + min(stage, over) for stage in range(stages + 1)]
    return tuple(map(range, starts, starts[1:]))


def stage_parts(model: ModelFacts, weight_bytes: int, stages: Stages) -> list[tuple[ModelFacts, int]]:
    """What each stage has of the model's layers, and the bytes of its weights; one part without ``stages``."""
    if not stages:
        return [(model, weight_bytes)]
    return [
        (structs.replace(model, num_layers=one.num_layers, sliding_layers=one.sliding_layers), one.weight_bytes)
        for one in stages
    ]


def refuse_stages(config: EngineConfig) -> None:
    """Refuse what pipeline stages cannot do yet.

    Raises:
      ConfigError: with what to do instead.
    """
    if config.parallel.stages > 1 and config.cache.host:
        raise ConfigError(
            "the host tier knows one stage",
            key="cache.host",
            value=True,
            suggestion="leave it at false, or set parallel.stages: 1 and a larger parallel.tensor",
        )
