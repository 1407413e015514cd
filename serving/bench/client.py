"""One streamed completion over plain HTTP/1.1, read with as little work of our own as can be.

A general HTTP client costs more processor time a chunk than some servers do; on a small machine that would be
measured as theirs.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_MAX_LINE: Final = 2**20


class ServerRefused(Exception):
    """The server's answer was not 200."""


@dataclass(slots=True, frozen=True)
class Server:
    """Where to send, and as whom."""

    url: str
    api_key: str | None = None

    def request(self, method: str, path: str, body: bytes) -> bytes:
        """The bytes of one request on a connection that is closed afterwards."""
        authorization = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        head = (
            f"{method} {urlsplit(self.url).path.rstrip('/')}{path} HTTP/1.1\r\n"
            f"Host: {urlsplit(self.url).netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"{authorization}Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(slots=True, frozen=True)
class Answer:
    """One completion as the client saw it. Seconds from sending."""

    prompt_tokens: int
    output_tokens: int
    chunk_s: list[float]
    """When each chunk with text came."""
    end_s: float

    @property
    def first_s(self) -> float:
        """Time to the first token."""
        return self.chunk_s[0] if self.chunk_s else self.end_s


async def model_name(server: Server) -> str:
    """The first model that the server lists."""
    body = b"".join([part async for part in _body(server, server.request("GET", "/v1/models", b""))])
    return json.loads(body)["data"][0]["id"]


async def complete(server: Server, model: str, prompt: list[int], output_len: int) -> Answer:
    """Ask for exactly ``output_len`` tokens, greedily, and time their arrival."""
    asked = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = server.request("POST", "/v1/completions", json.dumps(asked).encode())
    start = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, int] = {}
    async for event in _events(_body(server, request)):
        now = time.perf_counter() - start
        if event == b"[DONE]":
            break
        chunk = json.loads(event)
        if "error" in chunk:
            raise ServerRefused(str(chunk["error"]))
        if chunk["choices"]:
            arrivals.append(now)
        usage = chunk.get("usage") or usage
    return Answer(
        prompt_tokens=usage.get("prompt_tokens", len(prompt)),
        output_tokens=usage.get("completion_tokens", len(arrivals)),
        chunk_s=arrivals,
        end_s=time.perf_counter() - start,
    )


async def _events(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events; comments are passed over."""
    rest = b""
    async for part in body:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def _body(server: Server, request: bytes) -> AsyncIterator[bytes]:
    """The parts of the answer's body as they come."""
    address = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port or 80, limit=_MAX_LINE)
    try:
        writer.write(request)
        await writer.drain()
        status = (await reader.readline()).split(b" ", 2)
        chunked = False
        while (line := await reader.readline()).strip():
            chunked |= line.lower().startswith(b"transfer-encoding:") and b"chunked" in line.lower()
        if len(status) < 2 or status[1] != b"200":
            raise ServerRefused(f"{b' '.join(status).decode().strip()}: {(await reader.read(2000)).decode()}")
        if not chunked:
            yield await reader.read()
            return
        while size := int((await reader.readline()).strip() or b"0", 16):
            yield (await reader.readexactly(size + 2))[:-2]
    finally:
        writer.close()
