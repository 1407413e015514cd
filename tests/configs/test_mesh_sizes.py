import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.mesh_sizes import refuse_sizes
from configs.schema import ModelFacts, Parallel
from tests.configs.facts import SMOLLM2

MIXTURE = msgspec.structs.replace(SMOLLM2, feed_forward_sizes=(), num_experts=12, expert_size=96)


@given(
    st.sampled_from([SMOLLM2, MIXTURE, msgspec.structs.replace(MIXTURE, feed_forward_sizes=(1408,))]),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 40),
    st.integers(1, 64),
)
def test_what_is_not_refused_divides_and_what_a_refusal_suggests_is_no_longer_refused_for_that_key(
    model: ModelFacts, expert: int, tensor: int, stages: int, devices: int
) -> None:
    parallel = Parallel(expert=expert, tensor=tensor, stages=stages)
    try:
        refuse_sizes(parallel, model, devices)
    except ConfigError as error:
        axis = error.key.removeprefix("parallel.")
        for number in filter(str.isdigit, error.suggestion.split()):
            other = msgspec.structs.replace(parallel, **{axis: int(number)})
            try:
                refuse_sizes(other, model, devices)
            except ConfigError as second:
                assert second.key != error.key
        return
    assert stages * expert * tensor <= devices
    assert stages <= model.num_layers
    assert expert == 1 or model.num_experts % expert == 0
    assert model.expert_size % tensor == 0
    assert all(size % (expert * tensor) == 0 for size in model.feed_forward_sizes)


@pytest.mark.parametrize(
    ("model", "parallel", "said"),
    [
        (SMOLLM2, Parallel(expert=2), "parallel.expert: the model has no experts (got 2); 1 would do"),
        (SMOLLM2, Parallel(tensor=5), "does not divide the 1536 columns of the feed-forward (got 5); 4 or 6 would do"),
        (MIXTURE, Parallel(expert=5), "does not divide the 12 experts of a layer (got 5); 4 or 6 would do"),
        (MIXTURE, Parallel(tensor=7), "does not divide the 96 columns of an expert (got 7); 6 or 8 would do"),
        (SMOLLM2, Parallel(stages=31), "each stage needs a layer, and the model has 30 (got 31); 16 would do"),
        (SMOLLM2, Parallel(stages=17), "= 17, and there are 16 devices (got 17); 16 would do"),
        (SMOLLM2, Parallel(stages=9, tensor=2), "= 18, and there are 16 devices (got 2); 1 would do"),
        (MIXTURE, Parallel(expert=4, tensor=8), "expert × tensor = 32, and there are 16 devices (got 8); 4 would do"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_the_nearest_that_do(
    model: ModelFacts, parallel: Parallel, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_sizes(parallel, model, 16)
    assert said in str(caught.value)
