from pathlib import Path

import httpx2
import msgspec
import pytest

from scheduler.commands import AbortAll, Generate
from tests.serving.service import Service, serve
from tests.serving.test_openai import ids

ANSWER = "The lazy dog, café 🙂."


@pytest.fixture(scope="module")
def service(folder: Path):
    answer = [*ids(folder, ANSWER), 2]
    with serve(folder, lambda request: answer) as running:
        yield running


def post(service: Service, path: str, **body: object) -> httpx2.Response:
    return httpx2.post(f"{service.url}{path}", json=body)


def test_one_text_gives_one_object(service):
    reply = post(service, "/generate", text="Hi", sampling_params={"temperature": 0}, rid="mine").json()
    assert reply["text"] == ANSWER
    meta = reply["meta_info"]
    assert (meta["id"], meta["finish_reason"]) == ("mine", {"type": "stop", "matched": 2})
    assert meta["completion_tokens"] == len(reply["output_ids"])
    assert "index" not in reply


def test_a_batch_gives_a_list_in_order(service):
    reply = post(
        service, "/generate", text=["Hi", "Hello you"], sampling_params=[{"max_new_tokens": 1}, {"max_new_tokens": 2}]
    )
    replies = reply.json()
    assert [each["meta_info"]["finish_reason"] for each in replies] == [
        {"type": "length", "length": 1},
        {"type": "length", "length": 2},
    ]


def test_events_carry_all_the_text_so_far(service):
    with httpx2.stream("POST", f"{service.url}/generate", json={"input_ids": [5, 6], "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [msgspec.json.decode(line[6:]) for line in lines[:-1]]
    texts = [event["text"] for event in events]
    assert texts[-1] == ANSWER
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert [event["meta_info"]["finish_reason"] is None for event in events] == [True] * (len(events) - 1) + [False]


def test_log_probabilities_of_prompt_and_output_are_triples(service):
    body = {"input_ids": [5, 6, 7], "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
    meta = post(service, "/generate", **body, sampling_params={"max_new_tokens": 1}).json()["meta_info"]
    assert [entry[1] for entry in meta["input_token_logprobs"]] == [5, 6, 7]
    assert meta["input_token_logprobs"][0][0] is None
    assert meta["input_top_logprobs"][0] is None
    assert len(meta["output_token_logprobs"]) == 1
    assert meta["output_top_logprobs"][0][0] == meta["output_token_logprobs"][0]


def test_only_the_output_is_scored_unless_a_start_is_given(service):
    meta = post(service, "/generate", text="Hi", return_logprob=True).json()["meta_info"]
    assert meta["input_token_logprobs"] == []
    sent = [command for command in service.engine.heard if isinstance(command, Generate)][-1]
    assert (sent.params.logprobs, sent.params.prompt_logprobs) == (0, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "x", "input_ids": [1]}, "text"),
        ({"text": []}, "text"),
        ({"text": ""}, "text"),
        ({"input_ids": [99999]}, "text"),
        ({"text": "x", "sampling_params": {"top_p": 2}}, "sampling_params.top_p"),
        ({"text": "x", "sampling_params": {"json_schema": "{}"}}, "sampling_params.json_schema"),
        ({"text": ["x", "y"], "sampling_params": [{}]}, "sampling_params"),
        ({"text": "x", "logprob_start_len": 99}, "logprob_start_len"),
        ({"text": ["x", "y"], "lora_path": ["a"]}, "lora_path"),
    ],
)
def test_bad_native_requests_name_the_field(service, body, param):
    reply = post(service, "/generate", **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_an_abort_of_everything_ends_native_requests_with_that_reason(folder):
    with serve(folder, lambda request: [5] * 100, pace_s=0.05) as service:
        service.on_loop(lambda: None)
        body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 100}}
        with httpx2.stream("POST", f"{service.url}/generate", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            assert post(service, "/abort_request", abort_all=True).json()["success"] is True
            events = [line for line in lines if line]
        assert msgspec.json.decode(events[-2][6:])["meta_info"]["finish_reason"]["type"] == "abort"
        assert service.engine.count(AbortAll) == 1


def test_tokens_go_there_and_back(service, folder):
    for path in ("/tokenize", "/v1/tokenize"):
        reply = post(service, path, prompt=ANSWER, return_token_strs=True).json()
        assert reply["tokens"] == ids(folder, ANSWER)
        assert (reply["count"], reply["max_model_len"]) == (len(reply["tokens"]), 512)
        assert len(reply["token_strs"]) == reply["count"]
    for path in ("/detokenize", "/v1/detokenize"):
        assert post(service, path, tokens=reply["tokens"]).json() == {"prompt": ANSWER, "text": ANSWER}
    several = post(service, "/tokenize", prompt=["a", "b c"]).json()
    assert several["count"] == [len(each) for each in several["tokens"]]
    assert post(service, "/detokenize", tokens=several["tokens"]).json()["text"] == ["a", "b c"]


def test_a_chat_can_be_tokenized_as_it_would_be_sent(service):
    messages = [{"role": "user", "content": "Hi"}]
    tokens = post(service, "/tokenize", messages=messages).json()["tokens"]
    post(service, "/v1/chat/completions", messages=messages, max_tokens=1)
    sent = [command for command in service.engine.heard if isinstance(command, Generate)][-1]
    assert sent.prompt == tokens


def test_ids_outside_the_vocabulary_do_not_decode(service):
    assert post(service, "/detokenize", tokens=[5, 100_000]).status_code == 400
