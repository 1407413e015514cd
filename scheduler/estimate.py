"""How many tokens of the pool running requests will still take: SGLang's admission estimates, as pure functions."""

from collections.abc import Iterable
from typing import NamedTuple

from scheduler.draft import lease_of
from scheduler.request import Request

CLIP_NEW_TOKENS = 4096
"""New tokens that the estimates assume of one request at most (SGLang's bound)."""
RESERVED_TOKENS = 1
"""Tokens that ``lasts`` keeps for each request that goes on (SGLang's bound)."""


class Course(NamedTuple):
    """What is expected of a request until it ends."""

    tokens_left: float
    """That it will still produce."""
    tokens_freed: int
    """Of the pool when it ends, beside those it will produce."""


def new_tokens(request: Request) -> int:
    """Output tokens that a request may still produce, by the clip."""
    left = request.max_new - len(request.output) - request.inflight
    return left if left < CLIP_NEW_TOKENS else CLIP_NEW_TOKENS


def unmet_tokens(running: Iterable[Request]) -> int:
    """Tokens of running requests that are known already and have no pages yet."""
    total = 0
    for request in running:
        short = request.length - lease_of(request).capacity
        if short > 0 and request.finish is None:
            total += short
    return total


def expected_tokens(running: Iterable[Request], ratio: float) -> float:
    """Tokens of the pool that running requests will still take, by the new-token ratio."""
    output = unmet = 0
    for request in running:
        if request.finish is None:
            made = len(request.output) + request.inflight
            left = request.max_new - made
            output += left if left < CLIP_NEW_TOKENS else CLIP_NEW_TOKENS
            short = request.prompt_len + made - lease_of(request).capacity
            if short > 0:
                unmet += short
    return output * ratio + unmet


def window_tokens(request: Request, left: int, window: int, chunk: int) -> int:
    """Tokens of the window group that a request takes at once at most (SGLang's window budget).

    Args:
        request: one that waits.
        left: known tokens of it that are not cached.
        window: tokens that a sliding layer sees.
        chunk: prompt tokens of one step at most.
    """
    return max(min(left, chunk) - window, 0) + min(left + new_tokens(request), window)


def expected_window_tokens(running: Iterable[Request], window: int, page_size: int) -> int:
    """Tokens of the window group that running requests will still take: what they lack of a window."""
    total = 0
    for request in running:
        if request.finish is None:
            lease = lease_of(request)
            held = lease.capacity - lease.dropped * page_size
            ahead = request.length + new_tokens(request) - lease.capacity
            total += max(0, min(ahead, window + page_size - held))
    return total


def course(request: Request, ratio: float) -> Course:
    """What is expected of one request; one that ignores the end of sequence is expected to use all it may."""
    share = 1.0 if request.params.ignore_eos else ratio
    return Course(new_tokens(request) * share, request.length)


def lasts(courses: Iterable[Course], count: int, free: float) -> bool:
    """Whether ``free`` tokens last until every one of ``count`` requests has ended, those first that have least left.

    For a server without prefix cache, where what ends frees its tokens at once, and requests that ignore the end of
    sequence, whose length is known (SGLang's ``add_one_req_ignore_eos``).

    Args:
        courses: ascending.
        count: how many courses there are.
        free: tokens of the pool when all of them run.
    """
    for left, freed in courses:
        if free - left * count <= RESERVED_TOKENS * count:
            return False
        free += freed
        count -= 1
    return True
