"""A whole service with the stand-in engine, as a child process of the test. Run as a module it is the launcher."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WAIT_S = 30.0
STAND_IN = "tests.serving.process.fake_engine"
ROOT = Path(__file__).parents[3]


@dataclass(slots=True)
class Service:
    """A running launcher."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    log: Path
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx2.Client(base_url=self.url, timeout=WAIT_S)

    @property
    def engine_pid(self) -> int:
        return int((self.folder / "engine.pid").read_text())

    def pid_of(self, replica: int) -> int:
        """Of one of several engines, as it was started last."""
        return int((self.folder / f"engine-{replica}.pid").read_text())

    def heard(self, replica: int) -> list[str]:
        """The operators' commands that it got."""
        file = self.folder / f"heard-{replica}"
        return file.read_text().split() if file.exists() else []

    @property
    def said(self) -> str:
        """What the processes wrote on standard error."""
        return self.log.read_text()

    def status(self, path: str) -> int:
        return self.client.get(path).status_code

    def wait_for(self, path: str, status: int, limit_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if self.status(path) == status:
                    return
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        raise AssertionError(f"{path} did not answer {status}: {self.said}")

    def generate(self, prompt: list[int], max_new_tokens: int) -> httpx2.Response:
        return self.client.post("/generate", json=body(prompt, max_new_tokens))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The launcher's exit code."""
        return self.process.wait(WAIT_S)


def body(prompt: list[int], max_new_tokens: int, *, stream: bool = False) -> dict[str, object]:
    """Of POST /generate."""
    sampling = {"max_new_tokens": max_new_tokens, "temperature": 0, "ignore_eos": True}
    return {"input_ids": prompt, "sampling_params": sampling, "stream": stream}


def write_model(folder: Path) -> None:
    """A tokenizer whose 256 ids are the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_ports(count: int) -> int:
    """The first of so many ports in a row."""
    first = free_port()
    while not are_free(first, count):
        first = free_port()
    return first


def are_free(first: int, count: int) -> bool:
    """Whether so many ports in a row are."""
    with contextlib.ExitStack() as probes:
        try:
            for port in range(first, first + count):
                probes.enter_context(socket.socket()).bind(("", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def serving(
    tmp_path: Path, *settings: str, port: int | None = None, module: str = STAND_IN, **engine: str
) -> Iterator[Service]:
    """Start a service; every process of it is gone afterwards. ``engine`` are files for the stand-in."""
    folder = tmp_path / "model"
    write_model(folder)
    for name, text in engine.items():
        (folder / name).write_text(text)
    launch_file = tmp_path / "echo.yaml"
    launch_file.write_text(f"model: {{source: {folder}}}\n")
    port = port or free_port()
    overrides = [f"serving.port={port}", *settings]
    command = [sys.executable, "-m", "tests.serving.process.service", module, str(launch_file), *overrides]
    with running(command, folder, tmp_path / "log", port) as service:
        yield service


@contextlib.contextmanager
def running(command: list[str], folder: Path, log: Path, port: int) -> Iterator[Service]:
    """A launcher that begins; nothing of it is left afterwards. ``folder``: where its engines leave what tests read."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stderr=sink)
    service = Service(process, f"http://127.0.0.1:{port}", folder, log)
    try:
        yield service
    finally:
        service.client.close()
        process.kill()  # its children leave with it
        process.wait()


def main(module: str, path: str, overrides: list[str]) -> int:
    """Serve with the engine that is ``module``."""
    from configs.errors import ConfigError
    from configs.load import load
    from serving.launcher import launch

    loaded = load(Path(path), overrides, {})
    try:
        return launch(loaded.config, loaded.name, module)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
