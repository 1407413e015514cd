import logging

import pytest
from msgspec import Struct

from serving.protocol.errors import RequestError
from serving.protocol.fields import UnknownFields, decode_request


class Ask(Struct):
    size: int = 0


def test_each_unknown_field_is_warned_of_once(caplog):
    unknown = UnknownFields(False)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            decode_request(b'{"size": 1, "colour": 2, "taste": 3}', Ask, unknown, {})
    assert sorted(record.getMessage().split("'")[1] for record in caplog.records) == ["colour", "taste"]


def test_names_of_unknown_fields_are_remembered_within_a_bound(caplog):
    unknown = UnknownFields(False)
    with caplog.at_level(logging.WARNING):
        for i in range(1500):
            unknown.note([f"field{i}"])
    assert len(caplog.records) == 1024


@pytest.mark.parametrize("value", [b"null", b"false", b'""', b"[]", b"{}", b"0", b'"usual"'])
def test_a_field_that_asks_for_nothing_is_accepted_before_it_is_supported(value):
    ask = decode_request(b'{"size": 4, "later": ' + value + b"}", Ask, UnknownFields(True), {"later": ("usual",)})
    assert ask.size == 4


def test_a_field_that_asks_for_something_is_refused_by_name():
    with pytest.raises(RequestError, match="later is not supported yet") as caught:
        decode_request(b'{"later": {"a": 1}}', Ask, UnknownFields(False), {"later": ("usual",)})
    assert (caught.value.status, caught.value.param) == (400, "later")
