"""Renders a conversation with the model's own template, which is not trusted and has no say over special tokens.

Templates run in minijinja: no Python object is reachable, steps are counted (fuel) and sizes are capped. Where a value
given by the client spells a special token, a mark is put inside it before rendering, so that only the template's own
special tokens are encoded as such; the marked stretches come back as literal segments.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from minijinja import Environment, TemplateError

from serving.protocol.errors import invalid
from serving.tokenizer import Segment

_FUEL = 5_000_000
_MAX_TEMPLATE_CHARS = 1_000_000
_MAX_RENDERED_CHARS = 2**26
_RESERVED = frozenset(
    (
        *("messages", "tools", "documents", "bos_token", "eos_token", "unk_token", "pad_token", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "chat_template", "raise_exception", "strftime_now"),
    )
)

TemplateScalar = str | int | float | bool | None
TemplateValue = TemplateScalar | list[TemplateScalar]
Turn = Mapping[str, str]
"""``role``, ``content`` and, where given, ``name``."""


class ChatTemplate:
    """A compiled template and the special tokens that clients may not forge."""

    def __init__(
        self, source: str, *, special_tokens: tuple[str, ...], bos_token: str, eos_token: str, now: Callable[[str], str]
    ) -> None:
        if len(source) > _MAX_TEMPLATE_CHARS:
            raise ValueError(f"the chat template has {len(source)} characters, more than {_MAX_TEMPLATE_CHARS}")
        self._environment = Environment(
            templates={"chat": source},
            globals={
                "bos_token": bos_token,
                "eos_token": eos_token,
                "raise_exception": _raise_exception,
                "strftime_now": now,
            },
            fuel=_FUEL,
            trim_blocks=True,
            lstrip_blocks=True,
            debug=False,
        )
        self._knows_developer = "developer" in source
        names = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names))) if names else None

    def render(
        self, turns: Sequence[Turn], variables: Mapping[str, TemplateValue], *, continue_final: bool, generate: bool
    ) -> list[Segment]:
        """The prompt of a conversation. With ``continue_final`` it ends inside the last turn."""
        if taken := sorted(_RESERVED & variables.keys()):
            raise invalid(f"The template variable '{taken[0]}' cannot be set.", "chat_template_kwargs")
        texts = [text for turn in turns for text in turn.values()] + [str(value) for value in variables.values()]
        if sum(map(len, texts)) > _MAX_RENDERED_CHARS:
            raise invalid("The conversation is too long.", "messages", "request_too_large")
        mark = _unused_mark(texts)
        messages = [self._guarded_turn(turn, mark) for turn in turns]
        rendered = self._render(
            messages=messages,
            add_generation_prompt=generate,
            **{name: self._guard_value(value, mark) for name, value in variables.items()},
        )
        if continue_final:
            rendered = _cut_after(rendered, messages[-1]["content"])
        return _segments(rendered, mark)

    def _render(self, **context: object) -> str:
        try:
            rendered = self._environment.render_template("chat", **context)
        except _Refused as refusal:
            raise invalid(f"The chat template refuses these messages: {refusal}", "messages") from None
        except TemplateError:
            raise invalid("The chat template fails on these messages, or takes too many steps.", "messages") from None
        if len(rendered) > _MAX_RENDERED_CHARS:
            raise invalid("The rendered conversation is too long.", "messages", "request_too_large")
        return rendered

    def _guarded_turn(self, turn: Turn, mark: str) -> dict[str, str]:
        guarded = {key: value if key == "role" else self._guard(value, mark) for key, value in turn.items()}
        if guarded["role"] == "developer" and not self._knows_developer:
            guarded["role"] = "system"
        return guarded

    def _guard(self, text: str, mark: str) -> str:
        """Wrap every special token's name in marks, with one inside it that no template can undo."""
        if self._special is None:
            return text
        return self._special.sub(lambda found: f"{mark}{found[0][0]}{mark}{found[0][1:]}{mark}", text)

    def _guard_value(self, value: TemplateValue, mark: str) -> TemplateValue:
        if isinstance(value, list):
            return [self._guard(item, mark) if isinstance(item, str) else item for item in value]
        return self._guard(value, mark) if isinstance(value, str) else value


def _segments(rendered: str, mark: str) -> list[Segment]:
    """Cut at the triples of marks that ``_guard`` set: before, inside and after a name."""
    if mark not in rendered:
        return [Segment(rendered, literal=False)]
    pattern = re.compile(f"{mark}([^{mark}]){mark}([^{mark}]*){mark}")
    segments: list[Segment] = []
    end = 0
    for found in pattern.finditer(rendered):
        segments.append(Segment(rendered[end : found.start()].replace(mark, ""), literal=False))
        segments.append(Segment(found[1] + found[2], literal=True))
        end = found.end()
    segments.append(Segment(rendered[end:].replace(mark, ""), literal=mark in rendered[end:]))
    return [segment for segment in segments if segment.text]


def _unused_mark(texts: Sequence[str]) -> str:
    """A private-use character that no text of the client holds."""
    used = {char for text in texts for char in text}
    mark = next((char for char in map(chr, range(0xF0000, 0xF4000)) if char not in used), None)
    if mark is None:
        raise invalid("The messages use too many private characters.", "messages")
    return mark


def _cut_after(rendered: str, content: str) -> str:
    """Drop what the template puts after the last message."""
    tail = content.strip()
    at = rendered.rfind(tail) if tail else -1
    if at < 0:
        raise invalid("The last message cannot be continued: the template changes it.", "continue_final_message")
    kept = content.rstrip()
    return rendered[: at + len(tail)] + (content[len(kept) :] if kept else "")


def _raise_exception(message: str) -> str:
    raise _Refused(str(message)[:200])


class _Refused(Exception):
    """The template itself says that the conversation is not one for it."""
