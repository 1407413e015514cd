"""What operators and routers ask: cache, aborts, load, facts about the service."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.front import Front
from serving.protocol.errors import invalid
from serving.protocol.native import AbortRequest, Success


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def flush_cache(request: Request) -> Response:
        replies = await front.client.flush_cache()
        success = all(reply.success for reply in replies)
        message = "; ".join(dict.fromkeys(reply.message for reply in replies))
        return _json(Success(success, message, "ok" if success else "failed"), 200 if success else 400)

    async def abort(request: Request) -> Response:
        body = await front.read(request, AbortRequest, {"abort_message": ()})
        if body.abort_all:
            await front.client.abort_all()
        elif body.rid:
            await front.client.abort(body.rid)
        else:
            raise invalid("Give rid, or abort_all.", "rid")
        return _json(Success(True))

    async def get_load(request: Request) -> Response:
        return Response(msgspec.json.encode(await front.collector.loads()), media_type="application/json")

    async def loads(request: Request) -> Response:
        body = {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": package_version(),
            "loads": await front.collector.loads(),
        }
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def model_info(request: Request) -> Response:
        return JSONResponse(await _model_info(front))

    async def server_info(request: Request) -> Response:
        return Response(msgspec.json.encode(await _server_info(front)), media_type="application/json")

    return [
        Route("/flush_cache", flush_cache, methods=["GET", "POST"]),
        Route("/reset_prefix_cache", flush_cache, methods=["GET", "POST"]),
        Route("/abort_request", abort, methods=["POST"]),
        Route("/get_load", get_load, methods=["GET"]),
        Route("/v1/loads", loads, methods=["GET"]),
        Route("/model_info", model_info, methods=["GET"]),
        Route("/get_model_info", model_info, methods=["GET"]),
        Route("/server_info", server_info, methods=["GET"]),
        Route("/get_server_info", server_info, methods=["GET"]),
    ]


def package_version() -> str:
    """The installed version; a bare checkout has none."""
    try:
        return version("radjax")
    except PackageNotFoundError:
        return "0+checkout"


async def _model_info(front: Front) -> dict[str, object]:
    text = await front.need_text()
    ready = text.ready
    return {
        "model_path": front.config.model.source,
        "tokenizer_path": ready.folder,
        "served_model_name": ready.served_name,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": ready.architecture,
        "architectures": [ready.architecture],
        "max_model_len": ready.context_length,
        "vocab_size": ready.vocab_size,
    }


async def _server_info(front: Front) -> dict[str, object]:
    """The launch file without its keys, what routers read in SGLang's words, and each engine's state."""
    text = await front.need_text()
    config, ready = front.config, text.ready
    public = msgspec.structs.replace(
        config, serving=msgspec.structs.replace(config.serving, api_key=None, admin_key=None)
    )
    return {
        "version": package_version(),
        "model_path": config.model.source,
        "tokenizer_path": ready.folder,
        "served_model_name": ready.served_name,
        "tp_size": config.parallel.tensor,
        "pp_size": config.parallel.stages,
        "ep_size": config.parallel.expert,
        "dp_size": config.parallel.replicas,
        "context_length": ready.context_length,
        "max_total_num_tokens": ready.max_total_num_tokens,
        "max_req_input_len": ready.max_req_input_len,
        "max_running_requests": ready.max_running_requests,
        "port": config.serving.port,
        "host": config.serving.host,
        "config": public,
        "kv_events": _kv_events(front),
        "internal_states": [reply.state for reply in await front.client.state()],
    }


def _kv_events(front: Front) -> dict[str, object] | None:
    """Where KV events are published, for routers; None when they are not (document: M-3)."""
    observe, text = front.config.observe, front.text
    if observe.kv_events_endpoint is None or text is None:
        return None
    return {
        "publisher": "zmq",
        "endpoint": observe.kv_events_endpoint,
        "replay_endpoint": observe.kv_events_replay_endpoint,
        "topic": observe.kv_events_topic,
        "block_size": text.ready.page_size,
        "dp_size": front.config.parallel.replicas,
    }


def _json(body: Success, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
