"""The files of the live page, read once, and the headers with which they are served."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

PAGE: Final = "/dashboard"
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }
)
_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@dataclass(slots=True, frozen=True)
class PageFile:
    """One file and its media type."""

    body: bytes
    kind: str


def page_files() -> dict[str, PageFile]:
    """By path; the page itself stands at ``/dashboard``."""
    folder = Path(__file__).parent / "dashboard"
    files = {
        f"{PAGE}/{path.name}": PageFile(path.read_bytes(), f"{_KINDS[path.suffix]}; charset=utf-8")
        for path in sorted(folder.iterdir())
        if path.suffix in _KINDS
    }
    files[PAGE] = files.pop(f"{PAGE}/index.html")
    return files
