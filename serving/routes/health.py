"""Is it alive, ready, making progress; and its figures."""

import asyncio
import secrets

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from scheduler.commands import Generate, SamplingParams
from serving.front import Front
from serving.listener import PROBES
from serving.protocol.collector import Health
from serving.protocol.errors import RequestError, unavailable

_PROBE_S = 20.0


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def livez(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        health = await front.collector.health()
        if front.client.draining:
            health = Health(state="draining", reason="the service is shutting down")
        elif front.text is None and health.state == "ready":
            health = Health(state="starting", stage="reading the tokenizer")
        return _report(front, health, {}, passing=frozenset({"ready"}))

    async def health(request: Request) -> Response:
        more: dict[str, object] = {}
        if request.query_params.get("verbose", "false") not in ("0", "false"):
            more = {
                "replicas": (await front.collector.health()).replicas,
                "loads": await front.collector.loads(),
                "frontend_open_requests": front.client.num_open,
            }
        return _report(front, await front.collector.health(), more, passing=frozenset({"ready", "draining"}))

    async def health_generate(request: Request) -> Response:
        await _probe(front)
        return PlainTextResponse("ok\n")

    async def metrics(request: Request) -> Response:
        if not front.config.observe.metrics:
            raise RequestError(404, "not_found", "Metrics are switched off (observe.metrics).")
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(await front.collector.metrics(), headers={"content-type": kind})

    return [
        Route("/livez", livez, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/health_generate", health_generate, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


def _report(front: Front, health: Health, more: dict[str, object], *, passing: frozenset[str]) -> Response:
    """200 for the states in ``passing``, else 503; what this frontend knows itself comes first, ``more`` last."""
    if front.client.dead is not None:
        health = Health(state="dead", reason=front.client.dead)
    body = {
        "status": health.state,
        "stage": health.stage,
        "done": health.done,
        "total": health.total,
        "reason": health.reason,
        **more,
    }
    passes = health.state in passing
    headers = {} if passes else {"retry-after": str(max(1, round(health.retry_after_s)))}
    return Response(msgspec.json.encode(body), 200 if passes else 503, headers, "application/json")


async def _probe(front: Front) -> None:
    """Have the engine produce one token, or raise."""
    await front.need_text()
    rid = f"{PROBES}{secrets.token_hex(8)}"
    probe = Generate(rid=rid, prompt=[0], params=SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True))
    call = await front.client.open([probe], "/health_generate")
    try:
        async with asyncio.timeout(_PROBE_S):
            while call.remaining:
                await call.take(None)
    except TimeoutError:
        raise unavailable("stuck", "The engine produced no token in time.", 5) from None
    except RequestError as error:
        raise unavailable("unhealthy", error.message, 1) from None
    finally:
        front.client.abandon([probe])
