"""Server-sent events: framing, and nothing else."""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which clients skip and proxies count as traffic."""


def frame(payload: bytes) -> bytes:
    """One event that carries a JSON document (which holds no raw newline)."""
    return b"data: " + payload + b"\n\n"
