"""The live page's JavaScript: its functions in Node, and the page itself in Chromium."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyright import node

from scheduler.commands import Frame, Reason, StepMark
from scheduler.timeline import TimelineFile
from tests.serving.real_engine import real_engine

PAGE = Path(__file__).parent / "page"
LONG = {"max_new_tokens": 400, "ignore_eos": True}
DIALOG = "document.getElementById('explain').open"
SECOND = 1_000_000_000


def test_the_functions_of_the_page_pass_the_tests_written_for_them() -> None:
    tests = [str(path) for path in PAGE.glob("*.test.mjs")]
    # the Node that pyright runs on: the system's, or its own
    done = node.run("node", "--test", "--test-reporter=tap", *tests, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode()
    assert done.returncode == 0, said
    assert re.search(r"^# fail 0$", said, re.MULTILINE)
    [passed] = re.findall(r"^# pass (\d+)$", said, re.MULTILINE)
    assert int(passed) == sum(path.read_text(encoding="utf-8").count("\ntest(") for path in PAGE.glob("*.test.mjs"))


def browse(url: str, *steps: dict[str, Any]) -> list[Any]:
    """What Chromium reads on the page, which has nothing to complain of."""
    driver = ["node", "--experimental-websocket", "--no-warnings", str(PAGE / "chromium.mjs"), url]
    done = subprocess.run(driver, input=json.dumps(steps), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["complaints"] == []
    return seen["read"]


@pytest.mark.browser
def test_the_page_shows_requests_as_they_run_and_explains_one_on_enter(folder: Path) -> None:
    with real_engine(folder, num_rows=1) as engine:
        running = engine.send("/generate", "running", input_ids=[5, 6, 7], sampling_params=LONG)
        waiting = engine.send("/generate", "waiting", input_ids=[5, 6], sampling_params=LONG)
        engine.pass_time(2.0)
        rows = "[...document.querySelectorAll('.row')]"
        labels = f"{rows}.map((row) => row.getAttribute('aria-label')).join('\\n')"
        enter = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})"
        asked = engine.pool.submit(
            browse,
            engine.url + "/dashboard",
            {"until": "document.getElementById('status').dataset.state === 'ready'"},
            {"until": f"{labels}.includes('running, ') && {labels}.includes('waiting, waiting')"},
            {"read": "['running', 'waiting'].map((id) => document.getElementById(id).textContent)"},
            {"read": "document.querySelectorAll('#legend li').length"},
            {"until": f"{rows}[0].focus(), {rows}[0].dispatchEvent({enter}), true"},
            {"until": DIALOG},
            {"read": "document.getElementById('explain').textContent"},
        )
        while not asked.done():  # slowly, so that the requests outlast it
            engine.gate.permit()
            time.sleep(0.2)
        [counts, legend, explained] = asked.result()
        assert counts == ["1", "1"]
        assert legend == len(Reason) + 1
        assert "By reason" in explained
        engine.gate.open()
        assert running.result().status_code == waiting.result().status_code == 200


@pytest.mark.browser
def test_a_recording_is_shown_whole_with_what_it_has_and_the_live_page_comes_back(folder: Path, tmp_path: Path) -> None:
    marks = [StepMark(n + 1, n * SECOND, (n + 1) * SECOND, "decode", 4, 3, 3, 0, 3, 2) for n in range(25)]
    frame = Frame(replica=0, now_ns=25 * SECOND, steps=marks, stories=[], omitted=0, pages={}, tree=None)
    file = tmp_path / "kept.json"
    file.write_bytes(msgspec.json.encode(TimelineFile(frames=[frame])))
    shown = "['live-pages', 'live-tree', 'kept-live'].map((id) => !document.getElementById(id).hidden)"
    window = "[document.getElementById('window').value, document.getElementById('window-name').textContent]"
    marks_of_the_axis = "[...document.querySelectorAll('#timeline text.faint')].map((one) => one.textContent)"
    with real_engine(folder, num_rows=1) as engine:
        engine.gate.open()
        [name, counts, chosen, panels, axis, back, again] = browse(
            engine.url + "/dashboard",
            {"until": "document.getElementById('status').dataset.state === 'ready'"},
            {"file": ["#file", str(file)]},
            {"until": "!document.getElementById('recording').hidden"},
            {"read": "document.getElementById('recording-name').textContent"},
            {"read": "['running', 'waiting'].map((id) => document.getElementById(id).textContent)"},
            {"read": window},
            {"read": shown},
            {"read": f"{marks_of_the_axis}.slice(0, 2)"},
            {"until": "document.getElementById('back').click(), true"},
            {"read": window},
            {"read": shown},
        )
        assert name == "kept.json"
        assert counts == ["3", "2"]
        assert chosen == ["30", "Window"]
        assert panels == [False, False, True]
        assert axis == ["5.00 s", "10.0 s"]
        assert back == ["10", "Last"]
        assert again == [True, True, False]
