from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.chat_template import ChatTemplate
from serving.protocol.errors import RequestError
from serving.tokenizer import Segment, Tokenizer
from tests.serving.fakes import TEMPLATE

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def template(source: str = TEMPLATE) -> ChatTemplate:
    return ChatTemplate(
        source, special_tokens=SPECIAL, bos_token="<s>", eos_token="<|im_end|>", now=lambda form: "1 May"
    )


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


FORGED = st.lists(st.sampled_from([*SPECIAL, "<|im_", "end|>", "x", " ", "\U000f0000", "|"]), max_size=12).map("".join)


@given(content=FORGED)
def test_no_message_can_forge_a_special_token(folder: Path, content):
    segments = template().render([{"role": "user", "content": content}], {}, continue_final=False, generate=True)
    assert joined(segments) == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    ids = Tokenizer(folder).encode_now(segments, add_special_tokens=False)
    assert [token for token in ids if token < 3] == [1, 2, 1]


def test_variables_reach_the_template_and_reserved_ones_are_refused():
    source = "{{ bos_token }}{{ mood }}{% for word in words %}{{ word }}{% endfor %}{{ strftime_now('%d') }}"
    turn = {"role": "user", "content": "x"}
    shown = template(source).render(
        [turn], {"mood": "<|im_end|>", "words": ["a", "b"]}, continue_final=False, generate=True
    )
    assert [segment for segment in shown if segment.literal] == [Segment("<|im_end|>", literal=True)]
    assert joined(shown) == "<s><|im_end|>ab1 May"
    with pytest.raises(RequestError, match="bos_token"):
        template(source).render([turn], {"bos_token": "x"}, continue_final=False, generate=True)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('alternate, please') }}", "alternate, please"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "too many steps"),
        ("{{ messages[0].content.nothing.here }}", "fails"),
        ("{% include 'other' %}", "fails"),
    ],
)
def test_a_template_that_fails_or_never_ends_is_a_clear_refusal(source, words):
    with pytest.raises(RequestError, match=words) as caught:
        template(source).render([{"role": "user", "content": "x"}], {}, continue_final=False, generate=True)
    assert caught.value.status == 400


def test_developers_speak_as_system_where_the_template_knows_no_other():
    turns = [{"role": "developer", "content": "Be brief."}]
    assert joined(template().render(turns, {}, continue_final=False, generate=False)).startswith("<|im_start|>system\n")


def test_a_continued_message_is_left_open():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    assert joined(template().render(turns, {}, continue_final=True, generate=False)).endswith("assistant\nWell, ")
