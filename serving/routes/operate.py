"""What operators do to a running engine: pause it, have its garbage left alone, look at its state."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.commands import ContinueGeneration, DumpState, FreezeGC, PauseGeneration, Reply
from serving.front import Front
from serving.protocol.native import PauseRequest, Success


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
        parallel = front.config.parallel
        ranks = {"tp_rank": 0, "tp_size": parallel.tensor, "pp_rank": 0, "pp_size": parallel.stages}
        engines = [
            {**reply.state, "parallel_config": {**ranks, "dp_rank": rank if len(replies) > 1 else None}}
            for rank, reply in enumerate(replies)
        ]
        body = {"engines": engines}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return [
        Route("/pause_generation", pause, methods=["POST"]),
        Route("/continue_generation", go_on, methods=["POST"]),
        Route("/freeze_gc", freeze_gc, methods=["GET", "POST"]),
        Route("/debug/state", state, methods=["GET"]),
    ]


def _merged(replies: Sequence[Reply]) -> Response:
    success = all(reply.success for reply in replies)
    message = "; ".join(dict.fromkeys(reply.message for reply in replies))
    body = Success(success, message, "ok" if success else "failed")
    return Response(msgspec.json.encode(body), 200 if success else 400, media_type="application/json")
