"""What operators do to a running engine: pause it, have its garbage left alone, look at its state and settings."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.commands import ContinueGeneration, DumpState, FreezeGC, PauseGeneration, Reply, SetState
from serving.front import Front
from serving.protocol.errors import invalid
from serving.protocol.native import PauseRequest, SettingsRequest, Success


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def pause(request: Request) -> Response:
        empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
        body = PauseRequest() if empty else await front.read(request, PauseRequest, {})
        replies = await front.client.operate(lambda call: PauseGeneration(call=call, mode=body.mode or "abort"))
        return _merged(replies)

    async def go_on(request: Request) -> Response:
        return _merged(await front.client.operate(lambda call: ContinueGeneration(call=call)))

    async def freeze_gc(request: Request) -> Response:
        await front.collector.freeze_gc()
        return _merged(await front.client.operate(lambda call: FreezeGC(call=call)))

    async def state(request: Request) -> Response:
        replies = await front.client.operate(lambda call: DumpState(call=call))
        body = {"engines": [reply.state for reply in replies]}
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def set_state(request: Request) -> Response:
        settings = (await front.read(request, SettingsRequest, {})).server_args
        replies = await front.client.operate(lambda call: SetState(call=call, settings=settings))
        for reply in replies:
            if not reply.success:
                raise invalid(reply.message, "server_args")
        body = {"updated": True, "server_args": replies[0].state["settings"]}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return [
        Route("/pause_generation", pause, methods=["POST"]),
        Route("/continue_generation", go_on, methods=["POST"]),
        Route("/freeze_gc", freeze_gc, methods=["GET", "POST"]),
        Route("/debug/state", state, methods=["GET"]),
        Route("/set_internal_state", set_state, methods=["POST", "PUT"]),
    ]


def _merged(replies: Sequence[Reply]) -> Response:
    success = all(reply.success for reply in replies)
    message = "; ".join(dict.fromkeys(reply.message for reply in replies))
    body = Success(success, message, "ok" if success else "failed")
    return Response(msgspec.json.encode(body), 200 if success else 400, media_type="application/json")
