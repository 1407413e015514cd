"""Device profiles: ``/start_profile`` and ``/stop_profile`` (documents: M-10, O-32)."""

from collections.abc import Sequence

import msgspec
from msgspec import structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from configs.replicas import own_folder
from scheduler.commands import Reply, StartProfile, StopProfile
from serving.front import Front
from serving.protocol.profile import UNSUPPORTED, ProfileReply, StartProfileRequest


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def start_profile(request: Request) -> Response:
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        body = await front.read(request, StartProfileRequest, UNSUPPORTED) if has_body else StartProfileRequest()
        parallel = front.config.parallel

        def command(call: str, replica: int) -> StartProfile:
            whole = body.command(call)
            return structs.replace(whole, output_dir=own_folder(whole.output_dir, parallel, replica))

        return _answer(await front.client.operate_each(command))

    async def stop_profile(request: Request) -> Response:
        del request
        return _answer(await front.client.operate(lambda call: StopProfile(call=call)))

    return [
        Route("/start_profile", start_profile, methods=["GET", "POST"]),
        Route("/stop_profile", stop_profile, methods=["GET", "POST"]),
    ]


def _answer(replies: Sequence[Reply]) -> Response:
    success = all(reply.success for reply in replies)
    message = "; ".join(dict.fromkeys(reply.message for reply in replies))
    folder = "; ".join(
        dict.fromkeys(str(reply.state["output_dir"]) for reply in replies if "output_dir" in reply.state)
    )
    body = msgspec.json.encode(ProfileReply(success, message, folder))
    return Response(body, 200 if success else 400, media_type="application/json")
