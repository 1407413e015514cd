"""The record of experts over HTTP (document: O-42): what the engine is asked, and what is answered."""

import asyncio
from pathlib import Path

import httpx2
import pytest

from scheduler.commands import Command, ExpertDistribution, Message, Reply
from serving.routes.experts import ACTIONS
from tests.serving.fakes import make_config, make_ready
from tests.serving.real_engine import real_engine
from tests.serving.service import serve


class MixtureLink:
    """An engine that refuses to stop, and does the rest."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._out.put_nowait(make_ready(folder))

    async def send(self, command: Command) -> None:
        if isinstance(command, ExpertDistribution):
            self.asked.append(command.action)
            done = command.action != "stop"
            state = {"imbalance_after": [1.0]} if command.action == "rebalance" else {}
            message = "Succeeded" if done else "No record is running."
            self._out.put_nowait(Reply(call=command.call, success=done, message=message, state={**state}))

    async def receive(self) -> Message:
        return await self._out.get()


def test_each_path_asks_for_its_action_and_gives_the_engines_answer(folder: Path) -> None:
    link = MixtureLink(folder)
    config = make_config(admin_key="secret")
    key = {"authorization": "Bearer secret"}
    with serve(folder, lambda request: [], config=config, link=link, ready=False) as service:
        asyncio.run_coroutine_threadsafe(service.client.wait_ready(), service.loop).result(10)
        assert {httpx2.post(service.url + path).status_code for path in ACTIONS} == {403}
        answers = {path: httpx2.post(service.url + path, headers=key) for path in ACTIONS}
        assert httpx2.get(f"{service.url}/rebalance_experts", headers=key).status_code == 405
    assert link.asked == list(ACTIONS.values())
    refused = answers.pop("/stop_expert_distribution_record")
    assert refused.status_code == 400
    assert refused.json() == {"success": False, "message": "No record is running.", "engines": []}
    assert {answer.status_code for answer in answers.values()} == {200}
    assert answers["/rebalance_experts"].json()["engines"] == [{"imbalance_after": [1.0]}]


@pytest.mark.parametrize("path", ACTIONS)
def test_a_dense_model_says_that_it_has_no_experts(folder: Path, path: str) -> None:
    with real_engine(folder, 2) as engine:
        engine.gate.open()
        answer = httpx2.post(engine.url + path)
    assert answer.status_code == 400
    assert answer.json()["message"] == "The model has no experts, or is cut into stages or over hosts."
