"""The storage at run time over HTTP: what is answered, who may ask, and what reaches the engine."""

import asyncio
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import httpx2
from msgspec import structs

from configs.schema import Cache, EngineConfig
from scheduler.cache_tiers import CacheTiers
from scheduler.commands import AttachStorage, ClearStorage, Command, DetachStorage, GetState, Message, Reply
from scheduler.host_tier import HostTier
from scheduler.kv_cache import KVCache
from scheduler.page_allocator import PageAllocator
from scheduler.port import Answer
from scheduler.radix_cache import RadixCache
from scheduler.slots import Slots
from scheduler.storage_tier import StorageTier
from tests.fakes import EchoCopies
from tests.serving.fakes import make_config, make_ready
from tests.serving.service import serve

BACKEND = "/hicache/storage-backend"


class TiersLink:
    """An engine with tiers and nothing else: it does what it is asked for at once, or while ``held`` in ``finish``."""

    def __init__(self, folder: Path) -> None:
        self.copies = EchoCopies(SimpleNamespace(memory={}, shapes=SimpleNamespace(page_size=1)), [0])  # pyright: ignore[reportArgumentType]
        host = HostTier(PageAllocator(4), RadixCache(1), self.copies, 1, "write_through", 1)
        kv = KVCache(PageAllocator(4), Slots(1), RadixCache(1), 1, 4, host)
        self.tiers = CacheTiers(kv, host, StorageTier(host, "timeout", 1, 1, False))
        self.heard: list[Command] = []
        self.held = asyncio.Event()
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._out.put_nowait(make_ready(folder))

    async def send(self, command: Command) -> None:
        self.heard.append(command)
        if isinstance(command, GetState):
            state = {"storage_attached": self.tiers.storage.attached}
            self._out.put_nowait(Reply(call=command.call, success=True, message="", state=state))  # pyright: ignore[reportArgumentType]
        elif isinstance(command, AttachStorage | DetachStorage | ClearStorage):
            self._say(self.tiers.command(0, command))
            if not self.held.is_set():
                self.finish()

    async def receive(self) -> Message:
        return await self._out.get()

    def finish(self) -> None:
        """Do what is under way."""
        for done in self.copies.due():
            self._say(self.tiers.complete(done))

    def _say(self, answers: list[Answer]) -> None:
        for _, answer in answers:
            self._out.put_nowait(answer)  # pyright: ignore[reportArgumentType]  replies only


def ask(
    folder: Path, config: EngineConfig, calls: list[tuple[str, str, object]]
) -> tuple[TiersLink, list[httpx2.Response]]:
    link = TiersLink(folder)
    headers = {} if config.serving.admin_key is None else {"authorization": f"Bearer {config.serving.admin_key}"}
    with serve(folder, lambda request: [], config=config, link=link, ready=False) as service:
        asyncio.run_coroutine_threadsafe(service.client.wait_ready(), service.loop).result(10)
        replies = [
            httpx2.request(method, f"{service.url}{path}", json=body, headers=headers) for method, path, body in calls
        ]
    return link, replies


def with_cache(config: EngineConfig, storage_dir: str | None) -> EngineConfig:
    return structs.replace(config, cache=Cache(host=True, storage_dir=storage_dir))


def test_a_storage_is_attached_cleared_and_detached_while_the_service_runs(folder: Path) -> None:
    calls = [
        ("GET", BACKEND, None),
        ("POST", f"{BACKEND}/clear", {}),
        ("PUT", BACKEND, {"hicache_storage_prefetch_policy": "wait_complete"}),
        ("PUT", BACKEND, {}),
        ("GET", BACKEND, None),
        ("POST", "/clear_hicache_storage_backend", {}),
        ("DELETE", BACKEND, None),
        ("DELETE", BACKEND, None),
    ]
    link, replies = ask(folder, with_cache(make_config(), "known"), calls)
    assert [reply.status_code for reply in replies] == [200, 400, 200, 400, 200, 200, 200, 400]
    assert [reply.json()["message"] for reply in replies if "message" in reply.json()] == [
        "No storage is attached.",
        "attached",
        "A storage is attached.",
        "cleared",
        "The storage is detached.",
        "No storage is attached.",
    ]
    assert [replies[at].json() for at in (0, 4)] == [{"attached": [False]}, {"attached": [True]}]
    assert link.tiers.storage.prefetch_policy == "wait_complete"


def test_a_storage_that_cannot_be_opened_is_said_so_and_is_not_attached(folder: Path) -> None:
    link, [reply] = ask(folder, with_cache(make_config(), "absent"), [("PUT", BACKEND, {})])
    assert (reply.status_code, reply.json()["message"]) == (400, "not there")
    assert not link.tiers.storage.attached


def test_a_second_operation_is_refused_while_one_is_under_way(folder: Path) -> None:
    link = TiersLink(folder)
    link.held.set()
    config = with_cache(make_config(), "known")
    with (
        serve(folder, lambda request: [], config=config, link=link, ready=False) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        asyncio.run_coroutine_threadsafe(service.client.wait_ready(), service.loop).result(10)
        first = pool.submit(httpx2.put, f"{service.url}{BACKEND}", json={})
        while not link.heard:
            wait([first], timeout=0.01)
        second = httpx2.put(f"{service.url}{BACKEND}", json={})
        service.loop.call_soon_threadsafe(link.finish)
        assert first.result().status_code == 200
    assert second.status_code == 400
    assert "under way; try again" in second.json()["message"]


def test_another_folder_than_the_launch_files_takes_the_admin_key(folder: Path) -> None:
    body = {"directory": "known"}
    link, replies = ask(folder, with_cache(make_config(), None), [("PUT", BACKEND, {}), ("PUT", BACKEND, body)])
    assert [reply.status_code for reply in replies] == [400, 403]
    assert not link.heard
    _, [allowed] = ask(folder, with_cache(make_config(admin_key="secret"), None), [("PUT", BACKEND, body)])
    assert allowed.status_code == 200


def test_who_has_no_admin_key_reaches_no_engine(folder: Path) -> None:
    with serve(folder, lambda request: [], config=make_config(admin_key="secret")) as service:
        for method, path in [("PUT", BACKEND), ("DELETE", BACKEND), ("GET", BACKEND), ("POST", f"{BACKEND}/clear")]:
            assert httpx2.request(method, f"{service.url}{path}", json={}).status_code == 403
        assert httpx2.get(f"{service.url}/clear_hicache_storage_backend").status_code == 403
