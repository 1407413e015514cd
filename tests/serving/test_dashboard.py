"""The live page, its feed, and ``/explain``: behind a real frontend in front of the real scheduler."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest

import serving
from scheduler.commands import Explain, Look, Reason
from serving.dashboard_files import page_files
from serving.routes.dashboard import MAX_WATCHERS
from tests.serving.fakes import make_config
from tests.serving.real_engine import PATIENCE_S, real_engine, until
from tests.serving.service import serve

FOLDER = Path(serving.__file__ or "").parent / "dashboard"
SHORT = {"max_new_tokens": 4, "ignore_eos": True}
LONG = {"max_new_tokens": 400, "ignore_eos": True}


def script(request) -> list[int]:
    return [5, 6, 7]


class Links(HTMLParser):
    """What a page loads, and what a strict policy forbids in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []
        self.ids: set[str] = set()
        self.labels: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "script" and "src" not in given:
            self.inline.append("script")
        self.loaded += [value for name in ("src", "href") if tag in ("script", "link") and (value := given.get(name))]
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self.labels |= {value for name, value in attrs if name in ("for", "aria-labelledby") and value}


def parsed() -> Links:
    links = Links()
    links.feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    return links


def test_the_page_and_all_that_it_loads_are_served_with_a_strict_policy(folder: Path) -> None:
    with serve(folder, script) as service:
        for path in ["/dashboard", *parsed().loaded]:
            reply = httpx2.get(service.url + path)
            assert reply.status_code == 200, path
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
        assert httpx2.get(service.url + "/dashboard/../guard.py").status_code == 404


def test_the_page_has_nothing_inline_and_reaches_nothing_beyond_its_server() -> None:
    links = parsed()
    assert links.inline == []
    assert links.labels <= links.ids, "a label points at nothing"
    served = page_files()
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], path.name
        assert not re.search(r"\binnerHTML\b|\bouterHTML\b|\beval\(|insertAdjacentHTML|document\.write|@import", text)
        for module in re.findall(r'from "\./([\w.]+)"', text):
            assert f"/dashboard/{module}" in served
        used = set(re.findall(r'byId\("([\w-]+)"\)', text))
        assert used <= links.ids, path.name


def test_the_legend_of_the_page_names_every_reason() -> None:
    words = (FOLDER / "words.js").read_text(encoding="utf-8")
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    named = set(re.findall(r'^  \["(\w+)", "', words, re.MULTILINE))
    assert named == {reason.value for reason in Reason} | {"cached"}
    assert {f".fill-{name}" for name in named} <= set(re.findall(r"\.fill-\w+", style))


@pytest.mark.parametrize("header", [{"authorization": "Bearer right"}, {"x-api-key": "right"}])
def test_with_a_key_the_page_is_open_and_what_it_shows_is_not(folder: Path, header: dict[str, str]) -> None:
    with serve(folder, script, config=make_config(api_key="right")) as service:
        assert httpx2.get(service.url + "/dashboard").status_code == 200
        assert httpx2.get(service.url + "/dashboard/app.js").status_code == 200
        for path in ("/dashboard/events", "/explain/x", "/dashboard/other"):
            assert httpx2.get(service.url + path).status_code == 401, path
        assert httpx2.get(service.url + "/dashboard/other", headers=header).status_code == 404


def first_events(url: str, count: int) -> list[dict]:
    with httpx2.stream("GET", url + "/dashboard/events", timeout=PATIENCE_S) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in reply.iter_lines() if line.startswith("data: "))
        return [json.loads(next(lines).removeprefix("data: ")) for _ in range(count)]


def test_the_feed_shows_requests_steps_pages_and_prefixes_and_no_token_of_them(folder: Path) -> None:
    with real_engine(folder, num_rows=2) as engine:
        running = engine.send("/generate", "running", text="The quick brown fox", sampling_params=LONG)
        engine.gate.open()
        [first, second] = first_events(engine.url, 2)
        [frame] = first["frames"]
        [story] = frame["stories"]
        assert first["health"]["state"] == "ready"
        assert story["group"] == "running"
        assert sum(frame["pages"].values()) == 256
        assert frame["tree"] is not None
        assert second["frames"][0]["tree"] is None
        assert second["frames"][0]["now_ns"] >= frame["now_ns"]
        assert "quick" not in json.dumps([first, second])
        assert running.result().status_code == 200


def test_only_so_many_may_watch_and_nobody_asks_the_engine_when_nobody_does(folder: Path) -> None:
    with serve(folder, script) as service:
        assert service.engine.count(Look) == 0
        open_feeds = [httpx2.Client(timeout=PATIENCE_S) for _ in range(MAX_WATCHERS)]
        streams = [client.stream("GET", service.url + "/dashboard/events") for client in open_feeds]
        replies = [stream.__enter__() for stream in streams]
        assert [reply.status_code for reply in replies] == [200] * MAX_WATCHERS
        assert httpx2.get(service.url + "/dashboard/events").status_code == 503
        for stream, client in zip(streams, open_feeds, strict=True):
            stream.__exit__(None, None, None)
            client.close()

        def admitted() -> bool:
            with httpx2.stream("GET", service.url + "/dashboard/events", timeout=PATIENCE_S) as reply:
                return reply.status_code == 200

        until(admitted)
        assert service.engine.count(Look) > 0


def test_a_request_is_explained_while_it_waits_while_it_runs_and_when_it_has_ended(folder: Path) -> None:
    with real_engine(folder, num_rows=1) as engine:
        running = engine.send("/generate", "running", input_ids=[5, 6, 7], sampling_params=LONG)
        waiting = engine.send("/generate", "waiting", input_ids=[5, 6], sampling_params=SHORT)
        answers = {}
        for rid in ("running", "waiting"):
            asked = engine.pool.submit(httpx2.get, f"{engine.url}/explain/{rid}", timeout=PATIENCE_S)
            engine.step_until(asked.done)
            [answers[rid]] = asked.result().json()["choices"]
        assert answers["running"]["state"] == "running"
        assert answers["waiting"]["state"] == "waiting"
        assert answers["waiting"]["reason"] == "no_slot"
        assert answers["waiting"]["sentence"].endswith("it waits: for a free slot.")
        engine.gate.open()
        assert waiting.result().status_code == 200
        assert running.result().status_code == 200
        body = httpx2.get(f"{engine.url}/explain/waiting", timeout=PATIENCE_S).json()
        [ended] = body["choices"]
        assert (body["id"], ended["id"], ended["state"], ended["outcome"]) == ("waiting", "waiting", "ended", "length")
        assert ended["wall_s"] > 0
        assert abs(sum(ended["waits"].values()) - ended["wall_s"]) < 1e-6
        assert ended["waits"]["tokenizing"] > 0


def test_who_asks_for_it_is_told_in_the_usage_what_the_time_was_spent_on(folder: Path) -> None:
    with real_engine(folder, num_rows=1) as engine:
        engine.gate.open()
        body = {"model": "tiny", "prompt": "The quick", "max_tokens": 4, "ignore_eos": True}
        plain = httpx2.post(f"{engine.url}/v1/completions", json=body, timeout=PATIENCE_S).json()
        asked = httpx2.post(f"{engine.url}/v1/completions", json=body | {"explain": True}, timeout=PATIENCE_S).json()
        assert "waits" not in plain["usage"]
        assert {"tokenizing", "new"} <= set(asked["usage"]["waits"]) <= {reason.value for reason in Reason}
        with httpx2.stream(
            "POST",
            f"{engine.url}/v1/completions",
            json=body | {"explain": True, "stream": True, "stream_options": {"include_usage": True}},
            timeout=PATIENCE_S,
        ) as reply:
            chunks = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
        assert "waits" in chunks[-1]["usage"]
        assert all(not (chunk.get("usage") or {}).get("waits") for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_the_usage_of_a_choice_that_a_stop_string_ended_says_it_too(folder: Path, stream: bool) -> None:
    with real_engine(folder, num_rows=1) as engine:
        engine.gate.open()
        body = {"model": "tiny", "prompt": "The quick", "max_tokens": 40, "ignore_eos": True, "explain": True}
        url = f"{engine.url}/v1/completions"
        text = httpx2.post(url, json=body, timeout=PATIENCE_S).json()["choices"][0]["text"]
        body |= {"stop": [text[8:10]], "stream": stream, "stream_options": {"include_usage": True} if stream else None}
        reply = httpx2.post(url, json=body, timeout=PATIENCE_S)
        if stream:
            chunks = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
            assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "stop"
            used = chunks[-1]["usage"]
        else:
            assert reply.json()["choices"][0]["finish_reason"] == "stop"
            used = reply.json()["usage"]
        assert used["completion_tokens"] < 40
        assert {"tokenizing", "new"} <= set(used["waits"])


@pytest.mark.parametrize("rid", ["nobody", "x" * 257])
def test_an_unknown_request_is_not_found(folder: Path, rid: str) -> None:
    with serve(folder, script) as service:
        reply = httpx2.get(f"{service.url}/explain/{rid}", timeout=PATIENCE_S)
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "request_not_found"
        assert service.engine.count(Explain) == (len(rid) < 257)
