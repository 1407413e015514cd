"""Bounded types of public JSON, and the only way in: bytes to a checked struct.

msgspec refuses NaN, infinities, lone surrogates and wrong types by itself; depth is caught here.
"""

import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from serving.protocol.errors import RequestError, invalid, unsupported

MAX_STOPS = 16
"""Stop strings of one request: OpenAI's 4 and room for agents; each is one automaton stepped per character."""
MAX_STOP_CHARS = 512

Text = Annotated[str, Meta(max_length=2**25)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=256)]
ClientId = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
CacheKey = Annotated[str, Meta(max_length=1024)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[Token], Meta(min_length=1, max_length=2**24)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=1024)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
MinP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)]
StopIds = Annotated[list[Token], Meta(max_length=8)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[str, Bias], Meta(max_length=300)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]

_T = TypeVar("_T")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_MAX_WARNED = 1024

_log = logging.getLogger("serving.protocol")


class UnknownFields:
    """Says once of each field name that it means nothing here; strict services refuse it instead."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._warned: set[str] = set()

    def note(self, names: list[str]) -> None:
        """Warn of the names not seen before, or raise for the first."""
        if names and self._strict:
            raise invalid(f"Unknown field '{names[0][:128]}'.", names[0][:128], "unknown_field")
        for name in names:
            if name not in self._warned and len(self._warned) < _MAX_WARNED:
                self._warned.add(name)
                _log.warning("request field %r is unknown and ignored", name[:128])


def decode_json(raw: bytes, kind: type[_T]) -> _T:
    """Decode and check, or raise a ``RequestError`` that names the field."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except RecursionError:
        raise invalid("The JSON is nested too deeply.", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise invalid("The body is not valid JSON.", code="invalid_json") from None


def decode_request(
    raw: bytes, kind: type[_T], unknown: UnknownFields, unsupported_fields: Mapping[str, tuple[object, ...]]
) -> _T:
    """Decode a public request.

    ``unsupported_fields`` maps a field that cannot be served yet to the values that ask for nothing; null, false and
    empty ones always do.
    """
    fields = decode_json(raw, dict[str, msgspec.Raw])
    strangers = fields.keys() - field_names(kind)
    for name in strangers & unsupported_fields.keys():
        value = decode_json(bytes(fields[name]), object)
        if value and value not in unsupported_fields[name]:
            raise unsupported(name)
    unknown.note(sorted(strangers - unsupported_fields.keys()))
    return decode_json(raw, kind)


@cache
def field_names(kind: type) -> frozenset[str]:
    """The JSON names of the fields of a struct; found once, as that takes longer than to decode a request."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _explain(message: str) -> RequestError:
    """Msgspec's words hold types and bounds, never the client's value; its path names the field."""
    found = _WHERE.search(message)
    path = found[1][:128] if found else ""
    text = _WHERE.sub("", message)[:512]
    return invalid(f"{path}: {text}" if path else text, path or None, "invalid_value")
