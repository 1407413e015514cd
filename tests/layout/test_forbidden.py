import ast
from collections.abc import Iterator

import pytest

from tests.layout.sources import ROOMS, Source, imports, reaches, sources

MODULES = ("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "jsonpickle", "imp", "torch")
CALLS = {"eval", "exec", "compile", "__import__", "getattr", "hasattr", "setattr"}
ATTRIBUTES = {
    "send_pyobj",
    "recv_pyobj",
    "serialize_executable",
    "unsafe_load",
    "full_load",
    "UnsafeLoader",
    "FullLoader",
}
YAML_LOADERS = {"load", "load_all"}
FLAGS = {"allow_pickle", "trust_remote_code", "shell"}


def findings(tree: ast.AST) -> Iterator[str]:
    """Names of what no file of ours may use, each with its line."""
    yield from (one for one in imports(tree) for module in MODULES if reaches(one, module))
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                yield f"{name} in line {node.lineno}"
            case ast.Attribute(attr=name) if name in ATTRIBUTES:
                yield f"{name} in line {node.lineno}"
            case ast.Attribute(value=ast.Name(id="yaml"), attr=name) if name in YAML_LOADERS:
                yield f"yaml.{name} in line {node.lineno}"
            case ast.keyword(arg=str(name), value=ast.Constant(value=True)) if name in FLAGS:
                yield f"{name}=True in line {node.lineno}"
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "getenv" | "putenv"):
                yield f"os.{node.attr} in line {node.lineno}"
            case _:
                pass


@pytest.mark.parametrize("source", sources(*ROOMS), ids=lambda source: source.name)
def test_nothing_turns_bytes_into_code_or_reads_the_environment_in_passing(source: Source) -> None:
    found = list(findings(source.tree))
    if source.name == "configs.env":
        found = [one for one in found if not one.startswith("os.")]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.nn",
        "eval('1')",
        "exec('')",
        "getattr(x, 'y')",
        "socket.recv_pyobj()",
        "yaml.load(x)",
        "yaml.load(x, Loader=yaml.UnsafeLoader)",
        "np.load(x, allow_pickle=True)",
        "run(x, shell=True)",
        "os.environ['X']",
        "os.getenv('X')",
        "def f():\n  import pickle",
    ],
)
def test_the_search_finds_what_it_should(code: str) -> None:
    assert list(findings(ast.parse(code)))


def test_the_search_passes_what_is_harmless() -> None:
    code = "yaml.safe_load(x)\nnp.load(x, allow_pickle=False)\nre.compile(x)\nlowered.compile()\nos.cpu_count()"
    assert list(findings(ast.parse(code))) == []
