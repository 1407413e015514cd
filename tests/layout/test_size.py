"""Budgets: lines of code without docstrings, comments and blanks."""

import ast
import io
import tokenize

from tests.layout.sources import ROOMS, sources

FILE, CLASS, FUNCTION, COLLABORATORS, ARGUMENTS = 400, 200, 50, 8, 8
KERNEL_FUNCTION, KERNEL_ARGUMENTS = 120, 14

# what is too large → (how large it may be, date, why); keep it short, and take out what has shrunk
ALLOWED: dict[str, tuple[int, str, str]] = {}

SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):  # a docstring, of a field too
                lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case _:
                pass
    return lines


def overruns(name: str, text: str) -> dict[str, tuple[int, int]]:
    """What of module ``name`` is over its budget: its lines or arguments, and how many it may have."""
    lines = code_lines(text)
    kernel = name.startswith("model.kernels.")
    counts = [(name, len(lines), FILE)]
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ClassDef() if not is_data(node):
                counts.append((f"{name}.{node.name}", length(node, lines), CLASS))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                most = COLLABORATORS if node.name == "__init__" else KERNEL_ARGUMENTS if kernel else ARGUMENTS
                counts.append((f"{name}.{node.name}()", length(node, lines), KERNEL_FUNCTION if kernel else FUNCTION))
                counts.append((f"{name}.{node.name} arguments", num_arguments(node), most))
            case _:
                pass
    return {what: (count, most) for what, count, most in counts if count > most}


def length(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, lines: set[int]) -> int:
    return len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))


def is_data(node: ast.ClassDef) -> bool:
    """Whether a class has fields and no methods of its own."""
    return not any(isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) for child in node.body)


def num_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return len([argument for argument in every if argument.arg not in {"self", "cls"}])


OVERRUNS = {
    what: counts
    for source in sources(*ROOMS)
    for what, counts in overruns(source.name, source.path.read_text(encoding="utf-8")).items()
}


def test_every_file_class_and_function_keeps_its_budget() -> None:
    assert {what: counts for what, counts in OVERRUNS.items() if counts[0] > ALLOWED.get(what, (0,))[0]} == {}


def test_the_list_of_exceptions_names_only_what_is_still_too_large() -> None:
    assert ALLOWED.keys() - OVERRUNS.keys() == set()


def test_docstrings_comments_and_blank_lines_are_not_counted() -> None:
    text = '"""Doc\n\nlines."""\n\n# why\nx: int\n"""A field."""\ny = """a\nb"""\n'
    assert code_lines(text) == {6, 8, 9}


def test_what_is_too_long_is_found() -> None:
    text = "def f(a, b, c, d, e, f, g, h, i):\n" + "    x = 1\n" * 50
    assert overruns("model.x", text) == {"model.x.f()": (51, 50), "model.x.f arguments": (9, 8)}
    assert overruns("model.kernels.x", text) == {}
