"""``/start_profile`` and ``/stop_profile``: what the engine is asked, and the documents' answers."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import httpx2
import pytest

from model.interface import ProfileOptions, ProfileRefused
from scheduler.commands import Command, Message, StartProfile, StopProfile
from scheduler.profiling import ProfileControl
from tests.scheduler.build import play
from tests.serving.fakes import make_config, make_ready
from tests.serving.service import serve


class FakeProfiler:
    """Keeps what it was asked, and says no as the real one does."""

    def __init__(self) -> None:
        self.asked: list[ProfileOptions] = []
        self.running = False

    def start(self, options: ProfileOptions) -> Path:
        if self.running:
            raise ProfileRefused("Profiling is already in progress. Call /stop_profile first.")
        self.running = True
        self.asked.append(options)
        return Path("/traces")

    def stop(self) -> None:
        if not self.running:
            raise ProfileRefused("Profiling is not in progress. Call /start_profile first.")
        self.running = False

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


class ProfilingLink:
    """An engine that does nothing but profile."""

    def __init__(self, folder: Path) -> None:
        self.profiler = FakeProfiler()
        self._handlers = ProfileControl(self.profiler).handlers
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._out.put_nowait(make_ready(folder))

    async def send(self, command: Command) -> None:
        for _, answer in self._handlers[type(command)](0, command, 0):
            self._out.put_nowait(answer)  # pyright: ignore[reportArgumentType]  replies only

    async def receive(self) -> Message:
        return await self._out.get()


def test_start_and_stop_answer_in_the_documents_words(folder: Path) -> None:
    # documents: M-10, O-32
    link = ProfilingLink(folder)
    with serve(folder, lambda request: [], link=link, ready=False) as service:
        asyncio.run_coroutine_threadsafe(service.client.wait_ready(), service.loop).result(10)
        answers = [
            httpx2.request(method, f"{service.url}/{what}_profile")
            for method, what in [("GET", "stop"), ("POST", "start"), ("POST", "start"), ("POST", "stop")]
        ]
        given = {"num_steps": 3, "profile_by_stage": True, "activities": ["CPU", "MEM"], "with_stack": None}
        httpx2.post(f"{service.url}/start_profile", json=given | {"model": "m", "prompt": "of a benchmark"})
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (400, {"success": False, "message": "Profiling is not in progress. Call /start_profile first."}),
        (200, {"success": True, "message": "Succeeded", "output_dir": "/traces"}),
        (400, {"success": False, "message": "Profiling is already in progress. Call /stop_profile first."}),
        (200, {"success": True, "message": "Succeeded"}),
    ]
    default, second = link.profiler.asked
    assert (default.activities, default.num_steps, default.profile_by_stage) == (("CPU", "GPU"), None, False)
    assert (second.activities, second.num_steps, second.profile_by_stage) == (("CPU", "MEM"), 3, True)
    assert second.with_stack is default.with_stack is False


@pytest.mark.parametrize(
    "body",
    [
        {"num_steps": 0},
        {"activities": ["RPD"]},
        {"activities": []},
        {"profile_id": "../up"},
        {"repeat": 101},
        {"merge_profiles": True},
        {"profile_stages": ["idle"]},
    ],
)
def test_a_body_that_makes_no_sense_reaches_no_engine(folder: Path, body: dict[str, object]) -> None:
    # document: M-10
    link = ProfilingLink(folder)
    with serve(folder, lambda request: [], link=link, ready=False) as service:
        assert httpx2.post(f"{service.url}/start_profile", json=body).status_code == 400
    assert link.profiler.asked == []


@pytest.mark.parametrize("path", ["/start_profile", "/stop_profile"])
def test_only_administrators_profile(folder: Path, path: str) -> None:
    # document: M-10
    link = ProfilingLink(folder)
    with serve(folder, lambda request: [], link=link, ready=False, config=make_config(admin_key="k")) as service:
        assert httpx2.post(f"{service.url}{path}").status_code == 403
    assert not link.profiler.running


def test_an_engine_without_a_profiler_says_so() -> None:
    # document: M-10
    played = play({0: [StartProfile(call="a"), StopProfile(call="b")]})
    assert [(reply.call, reply.success, reply.message) for reply in played.replies()] == [
        ("a", False, "There is no profiler here."),
        ("b", False, "There is no profiler here."),
    ]
