"""``/explain/{id}``: where the time of a request went, while it is open and for some time after."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.front import Front
from serving.protocol.errors import RequestError
from serving.protocol.explain import explanation

MAX_ID = 256


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def explain(request: Request) -> Response:
        rid: str = request.path_params["rid"]
        unknown = RequestError(404, "request_not_found", "No such request is open, or was ended lately.", param="id")
        if len(rid) > MAX_ID:
            raise unknown
        stories = [*await front.client.explain(rid), *await front.collector.explain(rid)]
        if not stories:
            raise unknown
        body = {"id": rid, "choices": [explanation(story) for story in stories]}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return [Route("/explain/{rid:path}", explain, methods=["GET"])]
