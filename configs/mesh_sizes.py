"""Which sizes of the mesh a model can be cut by. Pure arithmetic; heads and vocabulary are filled up and fit any."""

from configs.errors import ConfigError
from configs.schema import ModelFacts, Parallel

Fault = tuple[str, int, str]
"""Key, its value, and what is wrong."""


def refuse_sizes(parallel: Parallel, model: ModelFacts, num_devices: int) -> None:
    """Refuse a mesh that does not divide the model, or that needs more devices than there are.

    Raises:
      ConfigError: with the nearest numbers that would do.
    """
    fault = _fault(parallel.expert, parallel.tensor, parallel.stages, model, num_devices)
    if fault is None:
        return
    key, value, what = fault

    def fits(size: int) -> bool:
        sizes = {"expert": parallel.expert, "tensor": parallel.tensor, "stages": parallel.stages} | {key: size}
        found = _fault(sizes["expert"], sizes["tensor"], sizes["stages"], model, num_devices)
        return found is None or found[0] != key

    below = next((size for size in range(value - 1, 0, -1) if fits(size)), None)
    above = next((size for size in range(value + 1, num_devices + 1) if fits(size)), None)
    would_do = " or ".join(str(size) for size in (below, above) if size is not None)
    raise ConfigError(
        what,
        key=f"parallel.{key}",
        value=value,
        suggestion=f"{would_do} would do" if would_do else "no size would do; change the other axes",
    )


def _fault(expert: int, tensor: int, stages: int, model: ModelFacts, num_devices: int) -> Fault | None:
    if stages > model.num_layers:
        return "stages", stages, f"each stage needs a layer, and the model has {model.num_layers}"
    if expert > 1 and not model.num_experts:
        return "expert", expert, "the model has no experts"
    if model.num_experts and model.num_experts % expert:
        return "expert", expert, f"does not divide the {model.num_experts} experts of a layer"
    if model.expert_size % tensor:
        return "tensor", tensor, f"does not divide the {model.expert_size} columns of an expert"
    shards = expert * tensor
    for size in model.feed_forward_sizes:
        if size % shards:
            product = f"expert × tensor = {shards} " if expert > 1 else ""
            return "tensor", tensor, f"{product}does not divide the {size} columns of the feed-forward"
    if stages * shards > num_devices:
        axes = f"stages × expert × tensor = {stages * shards}, and there are {num_devices} devices"
        if tensor > 1 and stages * expert <= num_devices:
            return "tensor", tensor, axes
        return ("expert", expert, axes) if expert > 1 and stages <= num_devices else ("stages", stages, axes)
    return None
