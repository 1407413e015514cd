"""What can be wrong with a request, and the one body that says so.

    RequestError                      status  code
    ├─ invalid                        400     invalid_request, or one that says more
    ├─ unsupported                    400     unsupported
    ├─ unauthenticated / forbidden    401/403 invalid_api_key / forbidden
    ├─ model_not_found / HTTP errors  404/405 model_not_found / not_found / method_not_allowed
    ├─ stalled                        408     request_timeout
    ├─ too_large                      413/431 request_too_large
    ├─ media_type                     415     unsupported_media_type
    ├─ internal                       500     internal_error (details stay in the log)
    └─ unavailable                    503     queue_full, displaced, waiting_timeout, running_timeout, draining,
                                              loading, engine_dead; with Retry-After

Every error leaves as ``{"error": {"message", "type", "param", "code"}}``, also in the middle of a stream.
Messages are sentences of this project: text of foreign exceptions and values of the client never enter them unbounded.
"""

import math
from http import HTTPStatus

import msgspec
from starlette.responses import Response

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that gets an error as its reply."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class ErrorDetail(msgspec.Struct, frozen=True):
    """The inside of an error body, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """An error as it leaves, as a body or as an event of a stream."""

    error: ErrorDetail


def body(error: RequestError) -> bytes:
    """The JSON of an error."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.message, kind, error.param, error.code)))


def response(error: RequestError) -> Response:
    """The HTTP reply of an error, with its ``Retry-After`` in whole seconds."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(body(error), error.status, headers, "application/json")


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> RequestError:
    """The request itself is wrong."""
    return RequestError(400, code, message, param=param)


def unsupported(param: str) -> RequestError:
    """The request asks for something that is not there yet."""
    return RequestError(400, "unsupported", f"{param} is not supported yet.", param=param)


def model_not_found(name: str) -> RequestError:
    """No model is served under this name."""
    return RequestError(404, "model_not_found", f"The model '{name[:128]}' does not exist.", param="model")


def unavailable(code: str, message: str, retry_after_s: float) -> RequestError:
    """The service cannot take the request now."""
    return RequestError(503, code, message, retry_after_s=retry_after_s)


def internal(request_id: str) -> RequestError:
    """Something failed here; the id finds it in the log."""
    return RequestError(500, "internal_error", f"Internal error; the request's id is {request_id}.")


def from_status(status: int) -> RequestError:
    """An error that the router found: unknown path, wrong method."""
    phrase = HTTPStatus(status).phrase
    return RequestError(status, phrase.lower().replace(" ", "_"), f"{phrase}.")
