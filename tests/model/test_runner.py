"""The runner over really compiled programs of a tiny model."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.schema import Model, Parallel
from model.batch import Program
from model.device_state import allocate, state_shapes
from model.interface import (
    FROM_DEVICE,
    MAX_LOGIT_BIAS,
    MAX_STOP_IDS,
    CountRow,
    Family,
    FullSampling,
    StepInput,
    StepOutput,
    Variant,
)
from model.loading.folder import model_folder
from model.loading.hf_config import read_config
from model.pipeline import Stage
from model.programs import Programs, all_programs, essential
from model.recipe import Recipe
from model.registry import blueprint
from model.runner import JaxRunner
from model.weights import load_weights
from model.widen import widen
from sharding.mesh import build_mesh
from tests.model.harness import GOLDEN, NUM_PAGES, Row, decode, golden, mixed, tiny_shapes

FOLDER = GOLDEN / "models" / "llama"
SHAPES = dataclasses.replace(tiny_shapes(512), decode_rows=(2, 4), mixed_tokens=(32,))
PAGES = [np.arange(1 + 10 * i, 11 + 10 * i, dtype=np.int32) for i in range(4)]


@pytest.fixture(scope="module")
def programs() -> Programs:
    spec = read_config(model_folder(FOLDER))
    model = blueprint(spec, build_mesh(Parallel()), "float32")
    state = state_shapes(model, SHAPES, NUM_PAGES)
    programs = Programs([Recipe(model, SHAPES, state)], (16, 64), lambda report: None)
    programs.start()
    programs.wait_all()
    return programs


@pytest.fixture
def runner(programs: Programs) -> JaxRunner:
    (recipe,) = programs.recipes
    leaves = load_weights(Model(source=str(FOLDER)), model_folder(FOLDER), recipe.model, lambda done, total: None)
    return JaxRunner(programs, [Stage(tuple(leaves.values()), allocate(recipe.state), recipe.model.mesh)], SHAPES)


def full(step: StepInput, **columns: np.ndarray) -> StepInput:
    rows = step.slots.size
    neutral = FullSampling(
        repetition=np.ones(rows, np.float32),
        frequency=np.zeros(rows, np.float32),
        presence=np.zeros(rows, np.float32),
        bias_ids=np.full((rows, MAX_LOGIT_BIAS), -1, np.int32),
        bias=np.zeros((rows, MAX_LOGIT_BIAS), np.float32),
        banned_ids=np.full((rows, 2 * MAX_STOP_IDS), -1, np.int32),
        bitmask=np.full((rows, 16), -1, np.int32),
        top_logprobs=np.zeros(rows, np.int32),
    )
    return dataclasses.replace(step, variant=Variant.FULL, full=dataclasses.replace(neutral, **columns))


def prompt_step(ids: np.ndarray, end: int) -> tuple[StepInput, int]:
    """A step that computes ids[:end] in slot 3 (row 5 of 6) and samples."""
    step, _ = mixed(SHAPES, 32, [], [Row(ids, 0, end, PAGES[0])])
    row = int(np.flatnonzero(step.lengths)[0])
    return dataclasses.replace(step, sample=step.lengths > 0), row


def run(runner: JaxRunner, step: StepInput) -> StepOutput:
    return runner.launch(step).result()


def column(step: StepInput, row: int, value: float, dtype: type = np.float32) -> np.ndarray:
    values = np.zeros(step.slots.size, dtype)
    values[row] = value
    return values


def test_greedy_is_the_argmax_of_the_reference(runner: JaxRunner) -> None:
    ids, logits = golden("llama")
    step, row = prompt_step(ids, 20)
    assert run(runner, step).tokens[row] == np.argmax(logits[19])


def test_a_token_left_on_the_device_continues_like_one_read_by_the_host(runner: JaxRunner) -> None:
    ids, _ = golden("llama")
    step, row = prompt_step(ids, 20)
    sampled = run(runner, step).tokens[row]
    longer = np.concatenate([ids[:20], [sampled]]).astype(np.int32)
    known = decode(SHAPES, 2, [Row(longer, 20, 21, PAGES[0])])
    known = dataclasses.replace(known, slots=np.where(known.lengths > 0, step.slots[row], 0).astype(np.int32))
    known = dataclasses.replace(known, sample=known.lengths > 0)
    left = dataclasses.replace(known, tokens=np.where(known.lengths > 0, FROM_DEVICE, 0).astype(np.int32))
    second = run(runner, left).tokens[0]
    run(runner, step)
    assert run(runner, known).tokens[0] == second


def test_the_full_variant_with_neutral_values_is_the_lean_one_and_scores_the_reference(runner: JaxRunner) -> None:
    ids, logits = golden("llama")
    step, row = prompt_step(ids, 20)
    lean = run(runner, step)
    out = run(runner, full(step, top_logprobs=column(step, row, 5, np.int32)))
    assert out.tokens[row] == lean.tokens[row]
    assert out.logprobs is not None
    assert out.top_ids is not None
    assert out.top_logprobs is not None
    expected = np.asarray(jax.nn.log_softmax(logits[19]))
    assert abs(out.logprobs[row] - expected.max()) < 1e-3
    assert np.array_equal(out.top_ids[row][:5], np.argsort(-expected)[:5])
    # a client compares these for equality to learn whether the token was the greedy one
    assert out.top_logprobs[row][0] == out.logprobs[row]


def test_bans_bias_and_bitmask_steer_the_choice(runner: JaxRunner) -> None:
    ids, logits = golden("llama")
    step, row = prompt_step(ids, 20)
    best, second, third = np.argsort(-logits[19])[:3]
    banned = np.full((step.slots.size, 2 * MAX_STOP_IDS), -1, np.int32)
    banned[row, 0] = best
    assert run(runner, full(step, banned_ids=banned)).tokens[row] == second
    bias_ids = np.full((step.slots.size, MAX_LOGIT_BIAS), -1, np.int32)
    bias = np.zeros(bias_ids.shape, np.float32)
    bias_ids[row, :2], bias[row, :2] = (best, 100), (-100, 100)
    assert run(runner, full(step, bias_ids=bias_ids, bias=bias)).tokens[row] == 100
    bitmask = np.full((step.slots.size, 16), -1, np.int32)
    bitmask[row] = 0
    bitmask[row, third // 32] = np.int32(np.uint32(1 << (third % 32)).view(np.int32))
    assert run(runner, full(step, bitmask=bitmask)).tokens[row] == third


@pytest.mark.parametrize(
    ("penalty", "value", "prompt", "output"),
    [("repetition", 2.0, 1, 0), ("repetition", 2.0, 0, 1), ("frequency", 2.0, 0, 5), ("presence", 2.0, 0, 1)],
)
def test_penalties_act_on_counts_that_admission_rebuilt(
    runner: JaxRunner, penalty: str, value: float, prompt: int, output: int
) -> None:
    ids, logits = golden("llama")
    step, row = prompt_step(ids, 20)
    best = int(np.argmax(logits[19]))
    neutral = 1.0 if penalty == "repetition" else 0.0
    values = np.where(np.arange(step.slots.size) == row, value, neutral).astype(np.float32)
    counted = CountRow(
        int(step.slots[row]), np.array([best], np.int32), np.array([prompt], np.int32), np.array([output], np.int32)
    )
    empty = CountRow(int(step.slots[row]), *(np.zeros(0, np.int32) for _ in range(3)))
    expected = logits[19].astype(np.float64)
    if penalty == "repetition":
        expected[best] = expected[best] / value if expected[best] > 0 else expected[best] * value
    else:
        expected[best] -= value * (output if penalty == "frequency" else 1)
    penalised = dataclasses.replace(full(step, **{penalty: values}), counts=(counted,))
    assert run(runner, penalised).tokens[row] == np.argmax(expected)
    assert run(runner, dataclasses.replace(penalised, counts=(empty,))).tokens[row] == best


def test_sampled_tokens_are_counted_on_the_device(runner: JaxRunner) -> None:
    ids, logits = golden("llama")
    step, row = prompt_step(ids, 20)
    best = int(np.argmax(logits[19]))
    empty = CountRow(int(step.slots[row]), *(np.zeros(0, np.int32) for _ in range(3)))
    frequency = column(step, row, 2.0)
    assert run(runner, dataclasses.replace(full(step, frequency=frequency), counts=(empty,))).tokens[row] == best
    times = 1
    while run(runner, full(step, frequency=frequency)).tokens[row] == best:
        times += 1
    gap = logits[19].max() - np.sort(logits[19])[-2]
    assert times == int(gap // 2.0) + 1


def test_scoring_gives_the_reference_log_probability_of_every_target(runner: JaxRunner) -> None:
    ids, logits = golden("llama")
    step, row = prompt_step(ids, 30)
    targets = np.full(32, -1, np.int32)
    targets[:30] = ids[1:31]
    one = {name: np.array([value[row]]) for name, value in (("slots", step.slots), ("starts", step.starts))}
    score = dataclasses.replace(
        step,
        family=Family.SCORE,
        lengths=np.array([30], np.int32),
        offsets=np.array([0], np.int32),
        sample=np.array([False]),
        page_tables=(step.page_tables[0][row : row + 1],),
        sampling=dataclasses.replace(step.sampling, **{k: v[:1] for k, v in dataclasses.asdict(step.sampling).items()}),
        targets=targets,
        **one,
    )
    out = run(runner, score)
    assert out.logprobs is not None
    expected = np.asarray(jax.nn.log_softmax(logits[:30], axis=1))[np.arange(30), ids[1:31]]
    assert np.abs(out.logprobs[:30] - expected).max() < 1e-3


@pytest.mark.parametrize("variant", [Variant.LEAN, Variant.FULL])
def test_a_step_widened_to_a_larger_program_gives_the_same_tokens(runner: JaxRunner, variant: Variant) -> None:
    ids, _ = golden("llama")
    for pages in PAGES[:2]:
        run(runner, mixed(SHAPES, 32, [], [Row(ids, 0, 20, pages)])[0])
    step = decode(SHAPES, 2, [Row(ids, 20, 21, pages) for pages in PAGES[:2]])
    step = dataclasses.replace(step, sample=step.lengths > 0)
    step = full(step) if variant is Variant.FULL else step
    narrow, wide = run(runner, step), run(runner, widen(step, 4, SHAPES))
    assert np.array_equal(narrow.tokens, wide.tokens[:2])


def test_warming_up_changes_nothing_that_a_request_sees(runner: JaxRunner) -> None:
    ids, _ = golden("llama")
    step, row = prompt_step(ids, 20)
    sampled = run(runner, step).tokens[row]
    follow = decode(SHAPES, 2, [Row(ids, 20, 21, PAGES[0])])
    slots = np.where(follow.lengths > 0, step.slots[row], 0).astype(np.int32)
    left = np.where(follow.lengths > 0, FROM_DEVICE, 0).astype(np.int32)
    follow = dataclasses.replace(follow, slots=slots, tokens=left, sample=follow.lengths > 0)
    expected = run(runner, follow).tokens[0]
    assert run(runner, step).tokens[row] == sampled
    runner.warm_up()
    assert run(runner, follow).tokens[0] == expected


def test_until_a_program_is_ready_the_next_larger_one_serves(programs: Programs) -> None:
    waiting = Programs(programs.recipes, (16,), lambda report: None)
    small, large = Program(Family.DECODE, Variant.LEAN, 2), Program(Family.DECODE, Variant.LEAN, 4)
    waiting.adopt(large, programs.step(large))
    assert waiting.choose(small) == large
    waiting.adopt(small, programs.step(small))
    assert waiting.choose(small) == small


def test_every_program_is_listed_once_with_the_essential_ones_first() -> None:
    listed = all_programs(SHAPES)
    assert len(set(listed)) == len(listed)
    assert set(listed[: len(essential(SHAPES))]) == set(essential(SHAPES))
