"""Kinds of values in a Hugging Face ``config.json``, bounded."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokenIds = TokenId | Annotated[list[TokenId], Meta(max_length=64)] | None
