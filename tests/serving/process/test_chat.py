"""``radjax chat`` against a server of a few lines."""

import json

import httpx2
import pytest

from serving.commands.chat import Conversation, ServerError, answer, first_model


def client(handler: httpx2.MockTransport) -> httpx2.Client:
    """A client of a stand-in server."""
    return httpx2.Client(base_url="http://server", transport=handler)


def event(content: str) -> str:
    """One chunk."""
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n"


def test_pieces_of_an_answer_come_in_order_and_comments_and_usage_are_passed_over() -> None:
    seen: list[dict[str, object]] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(json.loads(request.read()))
        usage = 'data: {"choices": [], "usage": {}}\n\n'
        text = ": keep-alive\n\n" + event("Par") + event("is") + usage + "data: [DONE]\n\n"
        return httpx2.Response(200, text=text)

    with client(httpx2.MockTransport(handle)) as http:
        messages = [{"role": "user", "content": "capital?"}]
        assert list(answer(http, messages, {"model": "m"})) == ["Par", "is"]
    assert seen == [{"model": "m", "messages": messages, "stream": True}]


def test_the_servers_own_words_are_the_error_before_and_within_a_stream() -> None:
    error = json.dumps({"error": {"message": "too long"}})
    for response in (httpx2.Response(400, text=error), httpx2.Response(200, text=event("P") + f"data: {error}\n\n")):

        def handle(request: httpx2.Request, response: httpx2.Response = response) -> httpx2.Response:
            return response

        with client(httpx2.MockTransport(handle)) as http, pytest.raises(ServerError, match="too long"):
            list(answer(http, [], {}))


def test_the_first_listed_model_is_taken() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/v1/models"
        return httpx2.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})

    with client(httpx2.MockTransport(handle)) as http:
        assert first_model(http) == "a"


def test_a_conversation_keeps_the_newest_messages_within_its_bound() -> None:
    conversation = Conversation()
    for number in range(1500):
        conversation.say("user", str(number))
    assert [message["content"] for message in conversation.messages] == [str(n) for n in range(500, 1500)]
