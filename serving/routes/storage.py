"""The storage below the host tier at run time, by the routes of SGLang."""

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from configs.replicas import own_folder
from scheduler.commands import AttachStorage, ClearStorage, DetachStorage, Reply
from serving.front import Front
from serving.protocol.errors import RequestError, invalid
from serving.protocol.native import AttachStorageRequest, Success

BACKEND = "/hicache/storage-backend"
CLEAR = f"{BACKEND}/clear"
OLD_CLEAR = "/clear_hicache_storage_backend"


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def attach(request: Request) -> Response:
        body = await front.read(request, AttachStorageRequest, {})
        directory = _directory(front, body.directory)
        policy, parallel = body.hicache_storage_prefetch_policy, front.config.parallel

        def command(call: str, replica: int) -> AttachStorage:
            own = own_folder(directory, parallel, replica)
            return AttachStorage(call=call, directory=own or directory, prefetch=policy)

        return _merged(await front.client.operate_each(command))

    async def detach(request: Request) -> Response:
        return _merged(await front.client.operate(lambda call: DetachStorage(call=call)))

    async def clear(request: Request) -> Response:
        return _merged(await front.client.operate(lambda call: ClearStorage(call=call)))

    async def show(request: Request) -> Response:
        states = [reply.state for reply in await front.client.state()]
        return JSONResponse({"attached": [state.get("storage_attached") for state in states]})

    return [
        Route(BACKEND, attach, methods=["PUT"]),
        Route(BACKEND, detach, methods=["DELETE"]),
        Route(BACKEND, show, methods=["GET"]),
        Route(CLEAR, clear, methods=["POST"]),
        Route(OLD_CLEAR, clear, methods=["GET", "POST"]),
    ]


def _directory(front: Front, wanted: str | None) -> str:
    """Another folder than the launch file's takes the admin key: the engine writes there with its own rights.

    Raises:
        RequestError: there is no folder, or it may not be chosen.
    """
    configured = front.config.cache.storage_dir
    if wanted is None or wanted == configured:
        if configured is None:
            raise invalid("Give directory: the launch file has no cache.storage_dir.", "directory")
        return configured
    if front.config.serving.admin_key is None:
        raise RequestError(403, "forbidden", "Another folder than cache.storage_dir needs serving.admin_key.")
    return wanted


def _merged(replies: list[Reply]) -> Response:
    success = all(reply.success for reply in replies)
    message = "; ".join(dict.fromkeys(reply.message for reply in replies))
    body = Success(success, message, "ok" if success else "failed")
    return Response(msgspec.json.encode(body), 200 if success else 400, media_type="application/json")
