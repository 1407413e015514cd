"""``radjax chat``: talk to a running server in the terminal. Ctrl-C stops the answer, Ctrl-D ends the talk."""

import argparse
import json
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

import httpx2

MAX_MESSAGES: Final = 1000
"""Older ones are forgotten."""

Message = dict[str, str]


@dataclass(slots=True)
class Conversation:
    """What was said."""

    messages: list[Message] = field(default_factory=list[Message])

    def say(self, role: str, content: str) -> None:
        """Add one message; the oldest leave when there are too many."""
        self.messages.append({"role": role, "content": content})
        del self.messages[:-MAX_MESSAGES]


class ServerError(Exception):
    """The server refused, or its stream ended with an error; the text is its own."""


def main(argv: list[str]) -> int:
    """Read lines, print answers; returns the exit code."""
    parser = argparse.ArgumentParser(prog="radjax chat", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--model", help="by default the first one that the server lists")
    parser.add_argument("--api-key")
    parser.add_argument("--system", help="what the model is told first")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--max-tokens", type=int)
    arguments = parser.parse_args(argv)
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    given = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
    options = {name: value for name, value in given.items() if value is not None}
    conversation = Conversation()
    if arguments.system:
        conversation.say("system", arguments.system)
    with httpx2.Client(base_url=arguments.url, headers=headers, timeout=httpx2.Timeout(10.0, read=600.0)) as client:
        try:
            model = arguments.model or first_model(client)
        except (httpx2.HTTPError, ServerError) as error:
            print(f"radjax chat: {arguments.url}: {error} (is 'radjax serve' running?)", file=sys.stderr)
            return 1
        print(f"{model} at {arguments.url}. Ctrl-C stops an answer, Ctrl-D ends.", file=sys.stderr)
        _talk(client, conversation, {"model": model, **options})
    return 0


def first_model(client: httpx2.Client) -> str:
    """The name of the first model that the server lists."""
    response = client.get("/v1/models")
    if response.status_code != 200:
        raise ServerError(_words(response))
    return response.json()["data"][0]["id"]


def answer(client: httpx2.Client, messages: list[Message], options: dict[str, object]) -> Generator[str, None, None]:
    """The pieces of the answer as they come. Closing the iterator ends the request.

    Raises:
      ServerError: the server's own words.
    """
    body = {**options, "messages": messages, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            response.read()
            raise ServerError(_words(response))
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data == line or data == "[DONE]":
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise ServerError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""


def _talk(client: httpx2.Client, conversation: Conversation, options: dict[str, object]) -> None:
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        if not said:
            continue
        conversation.say("user", said)
        text = _print_answer(client, conversation.messages, options)
        if text:
            conversation.say("assistant", text)
        else:
            conversation.messages.pop()  # nothing was answered: the question may be asked again


def _print_answer(client: httpx2.Client, messages: list[Message], options: dict[str, object]) -> str:
    """Print while it comes; what was printed so far is the answer when Ctrl-C or an error ends it."""
    text = ""
    pieces = answer(client, messages, options)
    try:
        for piece in pieces:
            text += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print(" [stopped]", end="")
    except (httpx2.HTTPError, ServerError) as error:
        print(f"\nradjax chat: {error}", file=sys.stderr)
    print(flush=True)
    return text


def _words(response: httpx2.Response) -> str:
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
