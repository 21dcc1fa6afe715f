"""What a mutation is, and how it is put into a file."""

import ast
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Mutation:
    """One thing that the product does, left out or turned round, and the test that must then fail."""

    what: str
    """What is wrong with the product then; a sentence."""
    file: str
    within: str
    """The function in which the text stands, as `Health.ended`; "" is the whole file, as for Lua."""
    old: str
    """Stands there exactly once."""
    new: str
    """In its place: `pass` or nothing for a line that is left out, else another condition or value."""
    test: str
    """The node id of the test that must fail."""


class NotFound(ValueError):
    """The text of a mutation does not stand where it should, exactly once."""


def span(mutation: Mutation, source: str) -> tuple[int, int]:
    """Where in the file the text begins and ends. Raises NotFound."""
    first, last = place(mutation, source)
    count = source.count(mutation.old, first, last)
    if count != 1:
        raise NotFound(f"stands there {count} times: {mutation.old!r} in {mutation.file} {mutation.within}")
    at = source.index(mutation.old, first, last)
    return at, at + len(mutation.old)


def mutated(mutation: Mutation, source: str) -> str:
    """The file with the mutation in it. Raises NotFound."""
    start, end = span(mutation, source)
    return source[:start] + mutation.new + source[end:]


@cache
def functions(source: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a module by their qualified names."""
    found: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}

    def visit(node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    found[name] = child
                visit(child, f"{name}.")
            else:
                visit(child, path)

    visit(ast.parse(source), "")
    return found


def place(mutation: Mutation, source: str) -> tuple[int, int]:
    """Where in the file the function begins and ends, or the file. Raises NotFound."""
    if not mutation.within:
        return 0, len(source)
    function = functions(source).get(mutation.within)
    if function is None or function.end_lineno is None:
        raise NotFound(f"{mutation.file} has no {mutation.within}")
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts[function.lineno - 1], starts[function.end_lineno]
