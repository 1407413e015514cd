"""Which experts the tokens go to: a record, and experts placed by it (document: O-42)."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scheduler.commands import ExpertDistribution
from serving.front import Front

ACTIONS: Final[Mapping[str, Literal["start", "stop", "dump", "rebalance"]]] = MappingProxyType(
    {
        "/start_expert_distribution_record": "start",
        "/stop_expert_distribution_record": "stop",
        "/dump_expert_distribution_record": "dump",
        "/rebalance_experts": "rebalance",
    }
)


def routes(front: Front) -> list[Route]:
    """The table of this module."""

    async def act(request: Request) -> Response:
        action = ACTIONS[request.url.path]
        replies = await front.client.operate(lambda call: ExpertDistribution(call=call, action=action))
        success = all(reply.success for reply in replies)
        message = "; ".join(dict.fromkeys(reply.message for reply in replies))
        body = {"success": success, "message": message, "engines": [reply.state for reply in replies if reply.state]}
        return Response(msgspec.json.encode(body), 200 if success else 400, media_type="application/json")

    return [Route(path, act, methods=["POST"] if path == "/rebalance_experts" else ["GET", "POST"]) for path in ACTIONS]
