"""When a request ends by itself. Stop strings are text and belong to the frontends."""

from scheduler.commands import FinishReason
from scheduler.request import Finish, Request


def finish_after(request: Request, token: int) -> Finish | None:
    """How the request ends with ``token``, the last of its output; None while it goes on.

    A stop id counts before the length, as in SGLang.
    """
    count = len(request.output)
    if token in request.stop_ids:
        return Finish(FinishReason.STOP, token, count)
    return Finish(FinishReason.LENGTH, None, count) if count >= request.max_new else None
