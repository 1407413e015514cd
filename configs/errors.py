"""What is wrong with a launch file, said once and clearly."""

SECRETS = frozenset({"serving.api_key", "serving.admin_key"})
"""Keys whose values are never printed."""

_SHOWN = 80


class ConfigError(Exception):
    """A mistake of the operator, found at start. It reads as one line: where, key, what, value, suggestion."""

    def __init__(
        self, message: str, *, key: str = "", value: object = None, suggestion: str = "", where: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.value = value
        self.suggestion = suggestion
        self.where = where

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.where, self.key, self.message) if part)
        if self.value is not None and self.key not in SECRETS:
            text += f" (got {shorten(self.value)})"
        return f"{text}; {self.suggestion}" if self.suggestion else text


def shorten(value: object) -> str:
    """``value`` as a reader of one line wants it: at most 80 characters, its beginning and its end (a file's name)."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2 - 1]}…{text[-_SHOWN // 2 :]}"
