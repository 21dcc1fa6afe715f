"""Collects everything that is wrong with one document, with lines, and without secrets."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lb_core.errors import ConfigError, Problem

type Path = tuple[str | int, ...]
type Value = bool | int | float | str | list[Value] | dict[str, Value] | None

SECRET_KEYS = frozenset({"headers", "password", "redis", "secret"})
LONGEST_SHOWN = 60
_PLAIN_KEY = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value stands, and how it may be shown in a message."""

    line: int
    shown: str
    text: str | None = None
    """What was written, variables filled, before it was typed; None for lists and mappings."""


class Report:
    """The problems found so far, and the places that they may be found in."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.marks: dict[Path, Mark] = {}
        self._problems: dict[Problem, None] = {}  # each once, in order
        self._broken: set[Path] = set()
        self._guessed: set[Path] = set()
        """What stands there may be meant for another key: that it is of another kind is no fault to tell."""

    def add(self, path: Path, message: str, *, line: int | None = None, broken: bool = False) -> None:
        """Note a problem at `path`, or at what holds it when the document has no such path.

        After a `broken` one, further problems at the same place are consequences and are left out.
        """
        while path and path not in self.marks:
            path = path[:-1]
        if any(path[:depth] in self._broken for depth in range(len(path) + 1)):
            return
        if broken:
            self._broken.add(path)
        self._problems[Problem(path_text(path), message, line or self.line(path))] = None

    def line(self, path: Path) -> int | None:
        """The line of the value at `path`, where the document has one."""
        mark = self.marks.get(path)
        return mark.line if mark else None

    def text(self, path: Path) -> str | None:
        """What was written at `path` before it was typed; "" for nothing, None for a list or a mapping."""
        mark = self.marks.get(path)
        return mark.text if mark else ""

    def shown(self, path: Path) -> str:
        """The value at `path` for a message, or a stand-in for it where it may be a secret."""
        while path and path not in self.marks:
            path = path[:-1]
        if SECRET_KEYS.intersection(path) or path not in self.marks:
            return "the value"
        return self.marks[path].shown

    def mapping(self, value: Value, path: Path) -> dict[str, Value]:
        """`value` as a mapping; an empty one, and a problem, where it is something else."""
        if isinstance(value, dict):
            return value
        if path not in self._guessed:
            self.add(path, f"expected a mapping, got {kind(value)}")
        return {}

    def sequence(self, value: Value, path: Path) -> list[Value]:
        """`value` as a list; an empty one, and a problem, where it is something else."""
        if isinstance(value, list):
            return value
        if path not in self._guessed:
            self.add(path, f"expected a list, got {kind(value)}")
        return []

    def known(
        self,
        values: Mapping[str, Value],
        path: Path,
        valid: Collection[str],
        *,
        elsewhere: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Value]:
        """The items of `values` whose keys are valid; a problem for each other.

        `elsewhere` says of keys that stand in the wrong place where they belong. What seems to be a valid
        key with a typo is read as that key: so nothing of what it holds is hidden, and nothing is missing.
        """
        found = {key: value for key, value in values.items() if key in valid}
        for key, value in values.items():
            at = (*path, key)
            if key in valid:
                continue
            if key in elsewhere:
                self.add(at, f"belongs {elsewhere[key]}")
            elif ":" in key:
                self.add(at, "unknown key; a space is missing after its colon")
            else:
                near = nearest(key, valid) or ";"
                self.add(at, f"unknown key{near} valid keys: {', '.join(sorted(valid))}")
                meant = closest(key, valid)
                if meant is not None and meant not in found:
                    found[meant] = value
                    self._guessed.add((*path, meant))
                    self._place_too(value, at, (*path, meant))
        return found

    def _place_too(self, value: Value, source: Path, to: Path) -> None:
        """Let what is at one path be at another as well."""
        if source in self.marks:
            self.marks[to] = self.marks[source]
        if source in self._broken:
            self._broken.add(to)
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for part, inner in inside:
            self._place_too(inner, (*source, part), (*to, part))

    @property
    def clean(self) -> bool:
        """Whether no problem was found."""
        return not self._problems

    def error(self) -> ConfigError:
        """All problems as one error, in the order of their lines."""
        return ConfigError(self.source, tuple(sorted(self._problems, key=lambda problem: problem.line or 0)))


def nearest(word: str, valid: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no valid word is close."""
    found = closest(word, valid)
    return f"; did you mean '{found}'?" if found is not None else ""


def closest(word: str, valid: Iterable[str]) -> str | None:
    """The valid word that seems to be meant."""
    by_folded = {name.casefold(): name for name in valid}
    found = difflib.get_close_matches(word[:LONGEST_SHOWN].casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


def kind(value: object) -> str:
    """What a value is, without what it holds."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"


def clipped(text: str) -> str:
    """`text`, its end cut off where it is long."""
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"


def path_text(path: Path) -> str:
    """A key path as people write it: `routes[0].lb_config.rate_limit`."""
    written = ""
    for part in path:
        if isinstance(part, int):
            written += f"[{part}]"
            continue
        # `{password:secret}`, its space forgotten, is one key: what follows the colon stays hidden.
        key = clipped(part.partition(":")[0])
        written += f".{key}" if _PLAIN_KEY.fullmatch(key) else f"[{key!r}]"
    return written.removeprefix(".")
