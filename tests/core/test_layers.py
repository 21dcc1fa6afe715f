"""Imports go downwards only, and the core knows nothing of the proxy."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LAYERS = [
    {"errors", "skim", "bodies", "request", "trust", "engines"},
    {"types"},
    {"drawing", "error_words", "recent", "record", "replies", "sse", "stats", "tasks"},
    {"retry", "services"},
    {"policies", "stores", "health"},
    {"prefix"},
    {"config", "cluster"},
    {"routes"},
    {"balancer", "dns", "watch", "discovery"},
    {"assembly", "gauges", "visits"},
    {"runtime"},
]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part(module: str) -> str:
    """The file or package right under lb_core."""
    return module.split(".")[1]


def test_the_core_imports_neither_mitmproxy_nor_the_addons() -> None:
    for path in (ROOT / "lb_core").rglob("*.py"):
        for module in imported(path):
            assert module.split(".")[0] not in {"mitmproxy", "addons", "tests"}, path


def test_imports_go_downwards_only() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for path in (ROOT / "lb_core").rglob("*.py"):
        here = path.relative_to(ROOT / "lb_core").parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module in imported(path):
            if module.startswith("lb_core.") and part(module) != here:
                assert level[part(module)] <= level[here], f"{path} imports {module}"


def test_every_part_of_the_core_has_its_layer() -> None:
    parts = {path.name.removesuffix(".py") for path in (ROOT / "lb_core").iterdir() if path.name[0] != "_"}
    assert parts <= set().union(*LAYERS)
