"""What is written of requests when an engine dies, and that it can be asked again."""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from configs.errors import ConfigError
from configs.schema import Observe
from scheduler.commands import Delta, Finished, FinishReason, Generate, Rejected, RequestTimes, SamplingParams
from serving.crash_dump import KEEP_S, LOST, MAX_ENDED, MAX_TOKENS, CrashDump, crash_dump_folder
from serving.listener import ListenedLink
from tests.serving.fakes import FakeEngine, make_ready
from tests.serving.service import serve

NO_TIMES = RequestTimes(arrived_ns=0, admitted_ns=0, first_token_ns=0, finished_ns=0, waited_ns={})


def asked(rid: str, prompt: list[int] | None = None) -> Generate:
    return Generate(rid=rid, prompt=prompt or [1, 2], params=SamplingParams(max_new_tokens=9))


def ended(rid: str, tokens: list[int]) -> Finished:
    return Finished(
        rid=rid,
        delta=Delta(rid=rid, tokens=tokens),
        reason=FinishReason.LENGTH,
        prompt_tokens=2,
        output_tokens=len(tokens),
        cached_tokens=0,
        times=NO_TIMES,
    )


def dumped(folder: Path) -> list[list[dict[str, Any]]]:
    """The requests of every file."""
    files = [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.iterdir())]
    assert all(head["requests"] == len(rest) for head, *rest in files)
    return [rest for _, *rest in files]


@given(st.lists(st.sampled_from(["finished", "refused", "open", "elsewhere", "probe"]), max_size=8))
def test_a_file_has_the_lost_and_the_ended_and_each_of_them_once(kinds: list[str]) -> None:
    with TemporaryDirectory() as name:
        dump = CrashDump(Path(name), "frontend-0")
        expected: list[tuple[str, str, list[int]]] = []
        for number, kind in enumerate(kinds):
            rid = f"health-{number}" if kind == "probe" else f"{kind}-{number}"
            dump.sent(asked(rid))
            dump.said(Delta(rid=rid, tokens=[number]))
            if kind == "finished":
                dump.finished(ended(rid, [7]))
                expected.append((rid, "length", [number, 7]))
            elif kind == "refused":
                dump.rejected(Rejected(rid=rid, status=503, code="queue_full", message=""))
                expected.append((rid, "queue_full", [number]))
        lost = {f"{kind}-{number}" for number, kind in enumerate(kinds) if kind == "open"}
        for _ in range(2):
            dump.lost(lost, "killed")
        files = dumped(Path(name))
        assert len(files) == bool(expected or lost)
        rows = {(one["rid"], one["how"], tuple(one["output_ids"])) for file in files for one in file}
        opened = {(rid, LOST, (int(rid.partition("-")[2]),)) for rid in lost}
        assert rows == {(rid, how, tuple(output)) for rid, how, output in expected} | opened


def test_what_is_kept_is_bounded_in_time_number_and_tokens(tmp_path: Path) -> None:
    now_s = 1e9
    dump = CrashDump(tmp_path, "frontend-0", lambda: now_s)

    def end(rid: str, prompt: list[int] | None = None) -> None:
        dump.sent(asked(rid, prompt))
        dump.finished(ended(rid, [7]))

    end("old")
    now_s += KEEP_S + 1
    for number in range(MAX_ENDED + 5):
        end(str(number))
    dump.lost((), "killed")
    for _ in range(5):
        end("long", [1] * (MAX_TOKENS // 4))
    dump.lost((), "killed")
    many, long = dumped(tmp_path)
    assert [one["rid"] for one in many] == [str(number) for number in range(5, MAX_ENDED + 5)]
    assert len(long) == 3


def test_a_file_can_be_read_by_its_owner_alone_and_a_full_disk_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dump = CrashDump(tmp_path, "frontend-0")
    dump.sent(asked("a"))
    dump.lost({"a"}, "killed")
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    gone = CrashDump(tmp_path / "gone", "frontend-0")
    gone.sent(asked("a"))
    with caplog.at_level(logging.ERROR):
        gone.lost({"a"}, "killed")
    assert "no crash dump was written" in caplog.text


def test_what_was_asked_over_http_can_be_asked_again_word_for_word(folder: Path, tmp_path: Path) -> None:
    whole = {
        "input_ids": [5, 6, 7],
        "sampling_params": {
            "max_new_tokens": 40,
            "min_new_tokens": 2,
            "temperature": 0.5,
            "top_k": 3,
            "top_p": 0.9,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": -0.2,
            "seed": 4,
            "logit_bias": {"3": 1.5},
            "stop_token_ids": [9],
            "ignore_eos": True,
        },
        "return_logprob": True,
        "top_logprobs_num": 2,
        "logprob_start_len": 1,
        "priority": 3,
        "extra_key": "a",
        "cache_salt": "b",
        "routing_key": "c",
    }
    plain = {"input_ids": [5], "sampling_params": {"temperature": 0}}
    dying, again = (FakeEngine(lambda request: [65] * 30, pace_s=pace_s) for pace_s in (60, 0))
    dump = CrashDump(tmp_path, "frontend-0")
    dying.say(make_ready(folder))
    with serve(folder, lambda request: [], link=ListenedLink(dying, dump)) as service:
        for body in (whole, plain):
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(f"{service.url}/generate", json=body, timeout=0.5)
        dump.lost({one.rid for one in dying.heard if isinstance(one, Generate)}, "killed")
    [file] = dumped(tmp_path)
    again.say(make_ready(folder))
    with serve(folder, lambda request: [], link=again) as service:
        for one in sorted(file, key=lambda one: one["sent_s"]):
            assert httpx2.post(f"{service.url}/generate", json=one["body"]).status_code == 200
    first, second = (
        [structs.replace(one, rid="", group=None) for one in engine.heard if isinstance(one, Generate)]
        for engine in (dying, again)
    )
    assert first == second
    assert len(first) == 2


def test_a_folder_that_cannot_be_written_to_is_refused_at_the_start(tmp_path: Path) -> None:
    assert crash_dump_folder(Observe()) is None
    assert crash_dump_folder(Observe(crash_dump_dir=str(tmp_path / "a" / "b"))) == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"observe\.crash_dump_dir"):
        crash_dump_folder(Observe(crash_dump_dir=str(tmp_path / "file" / "under")))
