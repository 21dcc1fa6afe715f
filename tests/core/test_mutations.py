"""The list of mutations fits the code, and leaves out no release and no verdict.

That the named tests notice the mutations is shown by `python -m tests.mutations`.
"""

import ast
import enum
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from lb_core.engines.watch import Change
from lb_core.health import Kind, Work
from lb_core.retry import Verdict
from lb_core.types import Ending
from tests.mutations import ALL
from tests.mutations.model import functions, mutated, place, span

ROOT = Path(__file__).resolve().parents[2]

GIVING_BACK = {
    *("_finish", "_finish_all", "_finish_client", "ended", "finish", "finished"),
    *("_free_probe", "_give_back", "_withdraw", "forget", "left", "reap", "release", "unwatch"),
    *("_lapse", "forget_failures", "lapse", "recant", "silence", "unanswered", "undrain", "withdraw"),
    *("_retire", "_stop", "abandon", "abort", "cancel", "close", "close_all", "retire", "stop"),
    *("server_close", "shutdown"),
}
"""Whoever calls something of these names gives something back, or tells that it is over."""

NO_MUTATION = {
    (
        "addons/failover/stream.py",
        "FailoverStream.handle_protocol_error",
        "self._parent.abandon(self.context.server)",
    ): "mitmproxy closes the connection itself, and passes nothing on to a flow that has ended",
    ("lb_core/engines/scraper.py", "_Visitor.visit", "self._fetcher.close()"): (
        "one for a page that leaves while its visit waits for a thread, which is not to be had in a test"
    ),
    (
        "lb_core/engines/scraper.py",
        "_Rounds.close",
        "self._crew_for_failed.close()",
    ): "as that of the other crew, which is shown",
    ("lb_core/prefix/redis.py", "_settle", "future.cancel()"): (
        "it keeps asyncio from logging an error that was told already"
    ),
    ("lb_core/stores/redis.py", "RedisStore._flush", "self._flush_due.cancel()"): (
        "the timer would find nothing to tell"
    ),
    ("lb_core/stores/redis.py", "RedisStore._flush", "self._books.left(names)"): (
        "where the link is down; when it is up again the books forget these anyway"
    ),
    ("lb_core/record.py", "close", ""): "it writes down, and gives nothing back",
}
"""By file, function and call: why nothing can be shown of it. No call is the function itself."""

ENUMS: dict[type[enum.Enum], tuple[str, ...]] = {
    Kind: ("lb_core/health/verdict.py",),
    Verdict: ("lb_core/retry.py",),
    Work: ("lb_core/balancer.py",),
    Ending: ("addons/ai_lb.py", "lb_core/health/verdict.py"),
    Change: ("lb_core/engines/watch.py", "lb_core/assembly.py"),
}
"""Where verdicts of each kind are given."""


@cache
def source_of(file: str) -> str:
    return (ROOT / file).read_text()


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse(source_of(file))


@cache
def functions_of(file: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return functions(source_of(file))


@cache
def spans(file: str) -> tuple[tuple[int, int], ...]:
    return tuple(span(each, source_of(file)) for each in ALL if each.file == file)


def product() -> list[str]:
    """All modules but the simulated engines."""
    paths = [*(ROOT / "lb_core").rglob("*.py"), *(ROOT / "addons").glob("*.py")]
    paths += (ROOT / "addons" / "failover").glob("*.py")
    return sorted(str(path.relative_to(ROOT)) for path in paths if not path.name.startswith("sim_"))


def bounds(file: str, node: ast.expr | ast.stmt) -> tuple[int, int]:
    """The offsets of a node, whose columns count bytes."""
    lines = source_of(file).splitlines(keepends=True)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None

    def offset(line: int, column: int) -> int:
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)


def is_mutated(file: str, node: ast.expr | ast.stmt) -> bool:
    start, end = bounds(file, node)
    return any(first < end and start < last for first, last in spans(file))


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, function and call, of all calls that give something back."""
    for file in product():
        for name, function in functions_of(file).items():
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    called = node.func
                    word = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                    if word in GIVING_BACK:
                        yield file, name, node


def has_a_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """False for promises, which have a docstring and perhaps `...`."""
    return any(
        not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)) for each in function.body
    )


# -- the list fits the code -------------------------------------------------------------------------


def test_each_text_stands_once_in_its_place_and_its_mutation_is_another_program() -> None:
    for mutation in ALL:
        source = source_of(mutation.file)
        start, end = place(mutation, source)
        changed = mutated(mutation, source)
        before, after = source[start:end], changed[start : end + len(changed) - len(source)]
        assert program(before, mutation.file) != program(after, mutation.file), mutation


def program(text: str, file: str) -> str:
    """What it does, whatever its form. Raises SyntaxError where it is none, but for Lua."""
    if file.endswith(".py"):
        return ast.dump(ast.parse(textwrap.dedent(text)))
    return re.sub(r"\s*--.*", "", text)


def test_each_named_test_exists() -> None:
    for mutation in ALL:
        file, *path = mutation.test.split("[")[0].split("::")
        assert (ROOT / file).is_file(), mutation
        assert ".".join(path) in functions_of(file), mutation


def test_no_mutation_stands_in_the_list_twice() -> None:
    for texts in (
        [each.what for each in ALL],
        [(each.file, each.within, each.old, each.new) for each in ALL],
    ):
        assert [text for text, count in Counter(texts).items() if count > 1] == []


# -- and is complete --------------------------------------------------------------------------------


def test_every_call_that_gives_something_back_has_a_mutation() -> None:
    missed = [
        (file, name, text)
        for file, name, node in calls()
        if not is_mutated(file, node)
        and (file, name, text := ast.get_source_segment(source_of(file), node) or "") not in NO_MUTATION
    ]
    assert missed == []


def test_every_function_that_gives_something_back_has_a_mutation() -> None:
    missed = [
        (file, name)
        for file in product()
        for name, function in functions_of(file).items()
        if function.name in GIVING_BACK
        and has_a_body(function)
        and (file, name, "") not in NO_MUTATION
        and not any(each.file == file and each.within == name for each in ALL)
    ]
    assert missed == []


def test_every_exception_is_one() -> None:
    found = {(file, name, ast.get_source_segment(source_of(file), node)) for file, name, node in calls()}
    found |= {(file, name, "") for file in product() for name in functions_of(file)}
    assert NO_MUTATION.keys() <= found


def test_every_script_in_redis_has_a_mutation() -> None:
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "lb_core/stores/lua").iterdir()}
    assert scripts <= {each.file for each in ALL}


@pytest.mark.parametrize(
    ("kind", "member"), [(kind, member.name) for kind in ENUMS for member in kind], ids=str
)
def test_every_verdict_has_a_mutation(kind: type[enum.Enum], member: str) -> None:
    """Of the statements with a mutation in them, one names it: what is mutated is when it is given."""
    word = re.compile(rf"\b({kind.__name__}\.)?{member}\b")
    assert any(word.search(text) for file in ENUMS[kind] for text in mutated_statements(file))


def test_every_reason_of_an_ejection_has_a_mutation() -> None:
    files = ("lb_core/health/outlier.py", "lb_core/health/monitor.py")
    reasons = {
        reason for file in files for reason in re.findall(r'self\._found\((\w+|"\w+"),', source_of(file))
    }
    assert reasons == {'"unreachable"', '"failures"', '"failure_share"', '"probe_failed"', "SILENT"}
    texts = [text for file in files for text in mutated_statements(file)]
    assert [reason for reason in reasons if not any(f"_found({reason}" in text for text in texts)] == []


def mutated_statements(file: str) -> Iterator[str]:
    """The smallest statements that hold the text of a mutation."""
    nodes = [(bounds(file, node), node) for node in ast.walk(tree_of(file)) if isinstance(node, ast.stmt)]
    for first, last in spans(file):
        around = [(end - start, node) for (start, end), node in nodes if start <= first and last <= end]
        _, smallest = min(around, key=lambda found: found[0])
        yield ast.get_source_segment(source_of(file), smallest) or ""
