"""The ASGI application: routes behind the guard, every error in one shape, and the tasks that live as long as it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from configs.schema import EngineConfig
from scheduler.commands import Ready
from serving.engine_client import EngineClient
from serving.engine_wire import EngineGone
from serving.front import Front
from serving.guard import Guard
from serving.http_meter import HttpMeter, HttpSink
from serving.protocol import errors
from serving.protocol.collector import CollectorClient
from serving.protocol.errors import RequestError
from serving.routes import admin, dashboard, experts, explain, health, native, openai, operate, profile, storage
from serving.text_side import TextSide, load_text_side

_log = logging.getLogger("serving.app")

LoadText = Callable[[Ready, EngineConfig], TextSide]


def build_app(
    config: EngineConfig,
    client: EngineClient,
    collector: CollectorClient,
    load_text: LoadText = load_text_side,
    http: HttpSink | None = None,
) -> Starlette:
    """The application of one frontend. It answers at once; generating ones with 503 until the engine is ready.

    ``http`` is told of every exchange.

    Its lifespan runs ``client`` and reads the model's folder (in a thread) when the engine says where it is.
    """
    front = Front(config, client, collector)
    tables = (
        openai.routes,
        native.routes,
        admin.routes,
        health.routes,
        profile.routes,
        storage.routes,
        operate.routes,
        experts.routes,
        explain.routes,
        dashboard.routes,
    )
    routes = [route for table in tables for route in table(front)]
    metered = [] if http is None else [Middleware(HttpMeter, routes=routes, sink=http)]
    app = Starlette(
        routes=routes,
        middleware=[*metered, Middleware(Guard, serving=config.serving)],
        exception_handlers={RequestError: _refuse, HTTPException: _miss, Exception: _fail},
        lifespan=partial(_lifespan, front, load_text),
    )
    app.router.redirect_slashes = False
    return app


@contextlib.asynccontextmanager
async def _lifespan(front: Front, load_text: LoadText, app: Starlette) -> AsyncGenerator[None]:
    running = asyncio.create_task(front.client.run())
    loading = asyncio.create_task(_load(front, load_text))
    try:
        yield
    finally:
        for task in (running, loading):
            task.cancel()
        await asyncio.gather(running, loading, return_exceptions=True)


async def _load(front: Front, load_text: LoadText) -> None:
    """Wait for the engine, then read the model's folder; what fails is this process's death, said in ``/health``."""
    try:
        ready = await front.client.wait_ready()
        front.give_text(await asyncio.to_thread(load_text, ready, front.config))
    except EngineGone:
        return
    except Exception as error:
        _log.exception("the model's tokenizer or template cannot be read")
        front.client.dead = f"the model's tokenizer or template cannot be read: {type(error).__name__}"


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError), "registered for nothing else"
    return errors.response(error)


async def _miss(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for nothing else"
    response = errors.response(errors.from_status(error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _fail(request: Request, error: Exception) -> Response:
    request_id: str = request.state.request_id
    _log.error("request %s failed", request_id, exc_info=error)
    response = errors.response(errors.internal(request_id))
    response.headers["x-request-id"] = request_id
    return response
