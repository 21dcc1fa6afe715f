"""Text → plain values, each with the line that it stands on.

PyYAML composes the nodes. They are turned into values here, because nodes still know what values have lost:
lines, quotes, and keys that were given twice. `${VARIABLE}` is filled after parsing, so that what the
environment holds can be a value but never YAML.
"""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError
from yaml.resolver import Resolver

from lb_core.config.report import Mark, Path, Report, Value, clipped
from lb_core.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "timestamp", "value", "merge"))
_KNOWN_TAGS = _TEXT_TAGS | {_TAG + name for name in ("int", "float", "bool", "null", "map", "seq")}
_VARIABLE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}|\$\{", re.ASCII)
_QUOTED = re.compile(r"""'[^'<][^']+'|"[^"][^"]+"|'.'|".\"""")


def read_text(path: FilePath) -> str:
    """The text of a configuration file of at most `MAX_BYTES` in UTF-8."""
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _failure(source, f"no such file; looked for '{source}'") from None
    except (OSError, ValueError) as error:
        raise _failure(source, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise _failure(source, f"larger than {MAX_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _failure(source, "not UTF-8 text", line) from None


def parse(text: str, report: Report, env: Mapping[str, str]) -> dict[str, Value]:
    """The document's top mapping. Lines go to `report.marks`; raises only where reading on makes no sense."""
    value = parse_value(text, report, env, expected="a mapping with the key 'clusters'")
    if not isinstance(value, dict):
        report.add((), "expected a mapping of keys at the top level")
        raise report.error()
    return value


def parse_value(text: str, report: Report, env: Mapping[str, str], *, expected: str) -> Value:
    """The document, whatever it is; raises like `parse`. `expected` says what an empty text lacks."""
    if len(text) > MAX_BYTES:
        raise _failure(report.source, f"larger than {MAX_BYTES} bytes")
    node = _compose(text, report.source)
    if node is None:
        raise _failure(report.source, f"the file is empty; expected {expected}")
    return _Reader(report, env).value(node, (), node.start_mark.line + 1, frozenset())


class _Loader(yaml.SafeLoader):
    """The safe loader with a bound on depth: its own recursion would end in a RecursionError."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = parent.start_mark if parent else None
            raise ComposerError(problem="nested too deeply", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return _Loader(text).get_single_node()
    except ReaderError as error:
        before = text.count("\n", 0, error.position)
        raise _failure(source, "not valid YAML: a character that is not allowed", before + 1) from None
    except yaml.MarkedYAMLError as error:
        # What YAML quotes may be a password that begins with * or !, so only its own terms are kept.
        parts = [part for part in (error.context, error.problem) if part]
        said = _QUOTED.sub(lambda match: match[0] if len(match[0]) == 3 else "(…)", ", ".join(parts))
        if "(…)" in said:
            said += "; text that begins with *, & or ! needs quotes"
        if r"'\t'" in (error.problem or ""):
            said = "a tab; indent and separate with spaces"
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        if line and any("${" in written for written in text.splitlines()[line - 1 : line]):
            said += "; within {…} and […] a ${VARIABLE} needs quotes"
        raise _failure(source, f"not valid YAML: {said}", line) from None
    except (ValueError, OverflowError):  # numeric escapes and versions beyond all bounds
        raise _failure(source, "not valid YAML: an impossible number in an escape or directive") from None


class _Reader:
    """Turns nodes into values, once for each place that an alias puts them."""

    def __init__(self, report: Report, env: Mapping[str, str]) -> None:
        self._report = report
        self._env = env
        self._nodes = 0

    def value(self, node: yaml.Node, path: Path, line: int, above: frozenset[int]) -> Value:
        """The value of `node`; `above` are the nodes around it."""
        self._report.marks[path] = Mark(line, "a mapping" if isinstance(node, yaml.MappingNode) else "a list")
        if not self._enter(node, path, line, above):
            return None
        inside = above | {id(node)}
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path, inside)
            case yaml.SequenceNode():
                return [
                    self.value(item, (*path, index), item.start_mark.line + 1, inside)
                    for index, item in enumerate(node.value)
                ]
            case yaml.ScalarNode():
                return self._scalar(node, path, line)
        return None

    def _enter(self, node: yaml.Node, path: Path, line: int, above: frozenset[int]) -> bool:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            # The line of the value is that of its anchor; the key that pulled it in is to blame.
            self._report.add(path[:1], f"more than {MAX_NODES} values, aliases expanded")
            raise self._report.error()
        if id(node) in above or len(above) >= MAX_DEPTH:
            fault = "an alias contains itself" if id(node) in above else "nested too deeply"
            self._report.add(path, fault, line=line, broken=True)
            return False
        if node.tag not in _KNOWN_TAGS:
            # Another tag may be a password that begins with !.
            python = node.tag.startswith(_TAG + "python/")
            tag = f"the tag !!{clipped(node.tag.removeprefix(_TAG))} is" if python else "tags are"
            self._report.add(path, f"{tag} not allowed; text that begins with ! needs quotes", broken=True)
            return False
        return True

    def _mapping(self, node: yaml.MappingNode, path: Path, above: frozenset[int]) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                values = self._merged(value, path, above) | values
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _TAG + "merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _KNOWN_TAGS:
                self._report.add(path, "a key must be plain text", line=line)
                continue
            name = _encodable(key.value)
            if name in first_lines:
                self._report.add(
                    (*path, name), f"given twice; the first is on line {first_lines[name]}", line=line
                )
                continue
            first_lines[name] = line
            values[name] = self.value(value, (*path, name), line, above)
        return values

    def _merged(self, node: yaml.Node, path: Path, above: frozenset[int]) -> dict[str, Value]:
        """What `<<` brings in: of several mappings the earlier one wins."""
        values: dict[str, Value] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            line = source.start_mark.line + 1
            if not isinstance(source, yaml.MappingNode):
                self._report.add(path, "<< takes a mapping or a list of mappings", line=line)
            elif self._enter(source, path, line, above):
                values = self._mapping(source, path, above | {id(source)}) | values
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path, line: int) -> Value:
        text = self._filled(node.value, path)
        tag = node.tag
        filled = text != node.value
        if filled and node.style is None:
            tag = Resolver().resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if (valid := _encodable(text)) != text:
            self._report.add(path, "not valid Unicode text", broken=True)
            text = valid
        value = _typed(tag, text)
        if filled:
            # What the environment holds may be a secret under any key.
            names = ", ".join(
                f"${{{match['name']}}}" for match in _VARIABLE.finditer(node.value) if match["name"]
            )
            shown = f"the value of {names}" if names else "the value"
        elif "@" in text or node.end_mark.line > node.start_mark.line:
            # Credentials in a URL; or a next line swallowed by wrong indentation, its password with it.
            shown = "the value"
        elif value is None:
            shown = "nothing"
        else:
            shown = repr(clipped(text)) if isinstance(value, str) else clipped(text)
        self._report.marks[path] = Mark(line, shown, "" if value is None else text)
        return value

    def _filled(self, text: str, path: Path) -> str:
        def fill(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            name, default = match["name"], match["default"]
            if name is None:
                self._report.add(path, "${ names no variable; write $${ for a literal ${", broken=True)
                return match[0]
            held = self._env.get(name)
            if default is not None:
                return held or default  # as in a shell: :- is for unset and for empty
            if held is None:
                self._report.add(
                    path,
                    f"environment variable {name} is not set; ${{{name}:-default}} gives it a default",
                    broken=True,
                )
                return match[0]
            return held

        return _VARIABLE.sub(fill, text)


def _typed(tag: str, text: str) -> Value:
    """The value of a scalar. YAML 1.1's base 60, octal by a leading zero, dates and infinities stay text:
    nobody means them here, and `22:30` or `0123` read as another number would pass unnoticed."""
    try:
        match tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() in {"yes", "true", "on"}
            case "int":
                return int(text, 0)
            case "float" if "n" not in text.lower():
                return float(text)
    except ValueError:
        return text
    return text


def _encodable(text: str) -> str:
    """`text` without the lone surrogates that YAML escapes and undecodable variables put in."""
    return text.encode(errors="replace").decode()


def _failure(source: str, message: str, line: int | None = None) -> ConfigError:
    return ConfigError(source, (Problem("", message, line),))
