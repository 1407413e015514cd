"""What is refused on arrival, and how the rest is cut to size. Pure functions of a request and the limits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scheduler.commands import Generate, Rejected
from scheduler.priority import Direction

MAX_RETRY_S = 120.0


@dataclass(slots=True, frozen=True)
class Limits:
    """What a request may ask for."""

    context_length: int
    pool_tokens: int
    """Tokens for which the whole pool has pages."""
    vocab_size: int
    max_queued: int
    max_queued_tokens: int = 2**31 - 1
    """Prompt tokens; a prompt beyond it may still wait alone."""
    priority: Direction = "off"
    adapters: frozenset[str] = frozenset()
    """Those that are loaded."""


@dataclass(slots=True, frozen=True)
class Load:
    """How busy the engine is."""

    num_queued: int
    drained_per_s: float
    """Requests that ended lately, per second; 0 when unknown."""
    queued_tokens: int = 0
    """Prompt tokens that wait."""

    @property
    def retry_after_s(self) -> float:
        """When the queue of now will have drained, in whole seconds, within bounds."""
        if not self.num_queued:
            return 1.0
        expected = self.num_queued / self.drained_per_s if self.drained_per_s > 0 else MAX_RETRY_S
        return float(math.ceil(min(max(expected, 1.0), MAX_RETRY_S)))


Gate = Callable[[Generate, Limits, Load], Rejected | None]


def known_tokens(command: Generate, limits: Limits, load: Load) -> Rejected | None:
    """Every token id of the prompt, the bias and the stop ids must be in the vocabulary."""
    del load
    params, size = command.params, limits.vocab_size
    if not command.prompt or max(command.prompt) >= size:
        return _reject(command, 400, "invalid_request", f"Prompt token ids must be below {size}.", "prompt")
    if any(token >= size for token, _ in params.logit_bias):
        return _reject(command, 400, "invalid_request", f"Token ids must be below {size}.", "logit_bias")
    if any(token >= size for token in params.stop_token_ids):
        return _reject(command, 400, "invalid_request", f"Token ids must be below {size}.", "stop_token_ids")
    return None


def known_adapter(command: Generate, limits: Limits, load: Load) -> Rejected | None:
    """The adapter must be loaded: the model's own weights would give another text than was asked for."""
    del load
    if command.adapter is None or command.adapter in limits.adapters:
        return None
    others = f"loaded are {', '.join(sorted(limits.adapters))}" if limits.adapters else "none is"
    message = f"The adapter '{command.adapter[:128]}' is not loaded ({others}); name the model alone to go without."
    return _reject(command, 404, "adapter_not_found", message, "lora_path")


def within_context(command: Generate, limits: Limits, load: Load) -> Rejected | None:
    """The prompt and one new token must fit the context."""
    del load
    length = len(command.prompt)
    if length + min(command.params.max_new_tokens, 1) <= limits.context_length:
        return None
    message = f"The prompt has {length} tokens; prompt and output together may have {limits.context_length}."
    return _reject(command, 400, "context_length_exceeded", message, "prompt")


def within_pool(command: Generate, limits: Limits, load: Load) -> Rejected | None:
    """The prompt must fit an otherwise empty pool."""
    del load
    length = len(command.prompt)
    if length <= limits.pool_tokens:
        return None
    message = f"The prompt has {length} tokens; the KV cache of this server holds {limits.pool_tokens}."
    return _reject(command, 400, "request_too_large", message, "prompt")


def queue_open(command: Generate, limits: Limits, load: Load) -> Rejected | None:
    """The queue must have room."""
    requests, tokens = excess(command, limits, load)
    if requests <= 0 and tokens <= 0:
        return None
    message = f"The queue is full: {load.num_queued} requests with {load.queued_tokens} prompt tokens wait."
    return _reject(command, 503, "queue_full", message, None, load.retry_after_s)


def excess(command: Generate, limits: Limits, load: Load) -> tuple[int, int]:
    """Requests and prompt tokens that the queue would hold beyond its limits; zero or less fits."""
    tokens = load.queued_tokens + len(command.prompt) - limits.max_queued_tokens
    return load.num_queued + 1 - limits.max_queued, min(tokens, load.queued_tokens)


GATES: tuple[Gate, ...] = (known_adapter, known_tokens, within_context, within_pool, queue_open)


def refusal(command: Generate, limits: Limits, load: Load) -> Rejected | None:
    """The first gate's objection."""
    return next((rejected for gate in GATES if (rejected := gate(command, limits, load))), None)


def allowed_new_tokens(command: Generate, limits: Limits) -> int:
    """``max_new_tokens``, cut to context and pool; the last token needs no room in the pool."""
    length = len(command.prompt)
    in_pool = limits.pool_tokens - length + 1
    return max(0, min(command.params.max_new_tokens, limits.context_length - length, in_pool))


def _reject(
    command: Generate,
    status: int,
    code: Literal["context_length_exceeded", "request_too_large", "queue_full", "invalid_request", "adapter_not_found"],
    message: str,
    param: str | None,
    retry_after_s: float | None = None,
) -> Rejected:
    return Rejected(
        rid=command.rid, status=status, code=code, message=message, param=param, retry_after_s=retry_after_s
    )
