"""A whole frontend on a real port in a thread, in front of a scripted engine."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from configs.schema import EngineConfig
from serving.app import build_app
from serving.engine_client import EngineClient
from serving.engine_wire import Link
from tests.serving.fakes import FakeCollector, FakeEngine, Script, Sink, make_config, make_ready


@dataclass
class Service:
    """The parts of a running frontend; touch the engine only through ``on_loop``."""

    url: str
    port: int
    engine: FakeEngine
    client: EngineClient
    collector: FakeCollector
    sink: Sink
    loop: asyncio.AbstractEventLoop

    def on_loop(self, work, *args) -> None:
        self.loop.call_soon_threadsafe(work, *args)


@contextmanager
def serve(
    folder: Path,
    script: Script,
    *,
    pace_s: float = 0.0,
    config: EngineConfig | None = None,
    ready: bool = True,
    send_buffer: int | None = None,
    link: Link | None = None,
) -> Iterator[Service]:
    """Run until the block ends; ``link`` leads to another engine than the scripted one."""
    started: list[Service] = []
    up = threading.Event()
    config = config or make_config()
    server_box: list[uvicorn.Server] = []

    async def main() -> None:
        engine, collector, sink = FakeEngine(script, pace_s), FakeCollector(), Sink()
        client = EngineClient([link or engine], frontend=0, stats=sink, stories=collector.stories.append)
        app = build_app(config, client, collector)
        # asyncio turns Nagle's delay off only for sockets that name their protocol
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        port = listener.getsockname()[1]
        options = {"log_level": "warning", "lifespan": "on", "ws": "none", "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config(app, **options))
        server_box.append(server)
        if ready:
            engine.say(make_ready(folder))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        loop = asyncio.get_running_loop()
        started.append(Service(f"http://127.0.0.1:{port}", port, engine, client, collector, sink, loop))
        while not server.started:
            await asyncio.sleep(0.005)
        if ready:
            await client.wait_ready()
            await asyncio.sleep(0.05)
        up.set()
        await running
        listener.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert up.wait(20), "the frontend did not start"
    try:
        yield started[0]
    finally:
        server_box[0].should_exit = True
        thread.join(20)
