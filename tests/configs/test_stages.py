"""Which stage has which layers, and what each stage's devices hold."""

from hypothesis import given
from hypothesis import strategies as st

from configs.memory import memory_plan, page_bytes, size
from configs.resolve import resolve
from configs.schema import EngineConfig, Model, Parallel, StageFacts
from configs.stages import stage_layers
from tests.configs.facts import SMOLLM2, SMOLLM2_BYTES, cpu


@given(st.integers(1, 200), st.data())
def test_every_layer_has_one_stage_in_order_and_no_stage_has_two_more_than_another(
    num_layers: int, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, num_layers))
    table = stage_layers(num_layers, stages)
    assert [layer for layers in table for layer in layers] == list(range(num_layers))
    sizes = [len(layers) for layers in table]
    assert len(sizes) == stages
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_the_memory_plan_says_what_the_fullest_stage_holds() -> None:
    parts = [
        StageFacts(weight_bytes=SMOLLM2_BYTES // 4, num_layers=20, sliding_layers=0),
        StageFacts(weight_bytes=SMOLLM2_BYTES // 2, num_layers=10, sliding_layers=0),
    ]
    config = EngineConfig(model=Model(source="x"), parallel=Parallel(stages=2))
    resolved = resolve(config, "tiny", cpu(), SMOLLM2, SMOLLM2_BYTES, parts)
    text = "\n".join(memory_plan(resolved, SMOLLM2, SMOLLM2_BYTES, cpu(), 1, parts))
    pool = resolved.num_pages * page_bytes(SMOLLM2, resolved.page_size, resolved.dtype, 1) * 20 // 30
    assert "2 of 20, 10 layers" in text
    assert f"at most {size(SMOLLM2_BYTES // 4)} of weights, {size(pool)} of KV pages" in text
