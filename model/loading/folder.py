"""The one shape in which a model reaches the engine: a folder in Hugging Face layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from configs.errors import ConfigError

GGUF = "model.gguf"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
ORBAX = "orbax"

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
"""Files beside the weights that are data; nothing else of a model's repository is ever looked at."""

Weights = Literal["safetensors", "gguf", "orbax", "none"]
MAX_JSON_BYTES = 256 * 2**20
T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class ModelFolder:
    """A folder with config.json, the tokenizer's files and weights of one kind.

    ``none`` is a folder without weights: enough for ``load_format: dummy``.
    """

    path: Path
    weights: Weights


def model_folder(path: Path) -> ModelFolder:
    """Look at a folder.

    Raises:
        ConfigError: it has no config.json.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} is no model folder: it has no config.json", key="model.source")
    return ModelFolder(path, _weights(path))


def read_json(path: Path, kind: type[T]) -> T:
    """Decode one JSON file into a msgspec type.

    Raises:
        ConfigError: it is missing, larger than 256 MiB, or not what ``kind`` describes.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB", key="model.source")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})", key="model.source") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid: {error}", key="model.source") from error


def _weights(path: Path) -> Weights:
    if (path / ORBAX).is_dir():
        return "orbax"
    if (path / SAFETENSORS).is_file() or (path / SAFETENSORS_INDEX).is_file():
        return "safetensors"
    return "gguf" if (path / GGUF).is_file() else "none"
