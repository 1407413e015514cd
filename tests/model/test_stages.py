"""Pipeline stages under the real scheduler: whatever the stages, the same requests get the same answers."""

import dataclasses
from collections.abc import Iterator
from functools import cache

import msgspec
import numpy as np
import pytest

from configs.resolve import in_flight
from configs.schema import Parallel
from model.device_state import state_shapes
from model.interface import Shapes, Variant
from model.loading.dummy import DummyCheckpoint
from model.pipeline import open_stages
from model.programs import Programs, ladder
from model.recipe import Recipe
from model.registry import joined, stage_blueprints
from model.runner import JaxRunner
from model.sections import compile_step
from model.spec import Experts, ModelSpec
from model.weights import assemble, hugging_face_shapes
from scheduler.assembly import Settings
from scheduler.assembly import assemble as assemble_engine
from scheduler.commands import Command, Delta, Finished, Generate, SamplingParams, Shutdown
from scheduler.loop import run
from sharding.mesh import build_mesh
from tests.fakes import ScriptedPort

SPEC = ModelSpec(
    architecture="llama",
    num_layers=4,
    hidden_size=32,
    intermediate_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=200,
    context_length=128,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    tie_embeddings=True,
    qkv_bias=False,
    qk_norm=False,
    dtype="float32",
    eos_token_ids=(7,),
)
SHAPES = Shapes(
    decode_rows=(4,),
    mixed_tokens=(32,),
    score_tokens=32,
    max_rows=4,
    max_pieces=2,
    tile=1,
    page_size=4,
    pages_per_row=32,
    vocab_size=SPEC.vocab_size,
)
NUM_PAGES, WINDOW_PAGES = 26, 20
SETTINGS = Settings(
    context_length=SPEC.context_length,
    num_pages=NUM_PAGES,
    max_rows=4,
    depth=0,
    max_inflight=0,
    eos_ids=SPEC.eos_token_ids,
    conservativeness=0.01,
    check="every_step",
)


def pipelined(stages: int, ahead: int = 1) -> Settings:
    """As a launch file resolves: a step under way for each stage, and ``ahead`` more."""
    depth, max_inflight = in_flight("pp", stages, ahead)
    return msgspec.structs.replace(SETTINGS, depth=depth, max_inflight=max_inflight, micro_batches=stages)


def programs(spec: ModelSpec, parallel: Parallel, layers: int = 0) -> Programs:
    parts = stage_blueprints(spec, build_mesh(parallel), "float32")
    shapes = dataclasses.replace(SHAPES, window=spec.sliding_window)
    window_pages = WINDOW_PAGES + 1 if shapes.window else 0
    recipes = [Recipe(part, shapes, state_shapes(part, shapes, NUM_PAGES + 1, window_pages), layers) for part in parts]
    return Programs(recipes, (128,), lambda report: None)


@cache
def with_all(spec: ModelSpec, parallel: Parallel, layers: int = 0) -> Programs:
    """Every program, the mixed ones in sections of so many layers."""
    started = programs(spec, parallel, layers)
    started.start()
    started.wait_all()
    return started


@cache
def with_greedy(spec: ModelSpec, parallel: Parallel) -> Programs:
    """Only what greedy requests need: compiling is nearly all of the time."""
    some = programs(spec, parallel)
    for program in ladder(SHAPES, Variant.LEAN):
        some.adopt(program, tuple(compile_step(recipe, program) for recipe in some.recipes))
    return some


def runner(spec: ModelSpec, compiled: Programs) -> JaxRunner:
    parts = [recipe.model for recipe in compiled.recipes]
    leaves = assemble(joined(parts), DummyCheckpoint(hugging_face_shapes(spec), 3), lambda done, total: None)
    return JaxRunner(compiled, open_stages(compiled.recipes, leaves), compiled.shapes)


def every_kind() -> list[Generate]:
    """Some behind one prefix, one longer than a step, and each kind of sampling."""
    return list(generates(KINDS))


def greedy() -> list[Generate]:
    """The same prompts."""
    return list(generates([{}] * len(KINDS)))


KINDS: list[dict[str, object]] = [
    {},
    {"logprobs": 3},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 0.8, "top_k": 20, "seed": 9},
    {"prompt_logprobs": 2},
    {},
    {"temperature": 1.0, "presence_penalty": 1.0, "seed": 4, "logprobs": 0},
]


def generates(kinds: list[dict[str, object]]) -> Iterator[Generate]:
    draw = np.random.default_rng(2)
    prefix = draw.integers(8, 200, 12).tolist()
    for index, kind in enumerate(kinds):
        prompt = prefix + draw.integers(8, 200, 45 if index == 5 else 3 + index).tolist()
        params = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True, "seed": 1} | kind
        yield Generate(rid=f"r{index}", prompt=prompt, params=msgspec.convert(params, SamplingParams))


def play(compiled: Programs, settings: Settings, asked: list[Generate], spec: ModelSpec = SPEC) -> dict[str, Finished]:
    """What each request is answered."""
    script: dict[int, list[tuple[int, Command]]] = {10_000: [(0, Shutdown())]}
    for index, request in enumerate(asked):
        script.setdefault(3 * (index // 3), []).append((0, request))
    port = ScriptedPort(script)
    if spec.sliding_window:
        settings = msgspec.structs.replace(settings, window_pages=WINDOW_PAGES)
    run(assemble_engine(port, runner(spec, compiled), settings, ()), settings.depth)
    ends = [answer for _, answer in port.answers if isinstance(answer, Finished)]
    assert len(ends) == len(asked)
    return {end.rid: end for end in ends}


@cache
def of_one_stage(spec: ModelSpec) -> dict[str, Finished]:
    return play(with_greedy(spec, Parallel()), SETTINGS, greedy(), spec)


def same(got: dict[str, Finished], expected: dict[str, Finished]) -> None:
    for rid, one in expected.items():
        assert got[rid].delta.tokens == one.delta.tokens, rid
        close(got[rid].delta, one.delta)


def close(got: Delta, expected: Delta) -> None:
    for mine, theirs in ((got.logprobs, expected.logprobs), (got.prompt_logprobs, expected.prompt_logprobs)):
        assert (mine is None) == (theirs is None)
        for one, other in zip(mine or [], theirs or [], strict=True):
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def strained(answers: dict[str, Finished]) -> bool:
    """Whether pages ran out, and prefixes were found again."""
    ends = answers.values()
    return any(end.retractions for end in ends) and any(end.cached_tokens for end in ends)


def test_two_stages_of_two_layers_and_one_answer_every_kind_of_request_as_one_stage() -> None:
    spec = dataclasses.replace(SPEC, num_layers=3)
    expected = play(with_all(spec, Parallel()), SETTINGS, every_kind(), spec)
    compiled = with_all(spec, Parallel(stages=2))
    got = play(compiled, pipelined(2), every_kind(), spec)
    same(got, expected)
    assert strained(got)
    same(play(compiled, pipelined(2, ahead=0), every_kind(), spec), expected)
    # a row that is launched again and again before the host has read a token finds each on the first stage
    deep = msgspec.structs.replace(SETTINGS, depth=3, max_inflight=3)
    same(play(compiled, deep, every_kind(), spec), expected)


@pytest.mark.parametrize(("stages", "tensor"), [(4, 1), (2, 2)])
def test_stages_with_and_without_shards_give_the_greedy_tokens_of_one(stages: int, tensor: int) -> None:
    got = play(with_greedy(SPEC, Parallel(stages=stages, tensor=tensor)), pipelined(stages), greedy())
    same(got, of_one_stage(SPEC))
    assert strained(got)


SLIDING = dataclasses.replace(
    SPEC,
    architecture="gemma3",
    num_layers=3,
    activation="gelu_tanh",
    embedding_scale=32**0.5,
    norm_offset=1.0,
    post_norms=True,
    qk_norm=True,
    sliding_window=10,
    sliding_layers=(True, False, True),
    local_rope_theta=1e3,
)
MIXTURE = dataclasses.replace(
    SPEC,
    architecture="qwen3_moe",
    num_layers=3,
    qk_norm=True,
    experts=Experts(count=4, per_token=2, width=16, normalise=True, dense_layers=(2,)),
)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SLIDING, MIXTURE], ids=["sliding", "mixture"])
@pytest.mark.parametrize("parallel", [Parallel(stages=2), Parallel(stages=3, tensor=2)], ids=["2", "3x2"])
def test_stages_of_any_architecture_give_the_greedy_tokens_of_one(spec: ModelSpec, parallel: Parallel) -> None:
    got = play(with_greedy(spec, parallel), pipelined(parallel.stages), greedy(), spec)
    same(got, of_one_stage(spec))
    assert strained(got)
