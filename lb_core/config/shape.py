"""Mappings → frozen dataclasses, by pydantic, with its complaints put into plain words."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import annotated_types
import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lb_core.config.report import Path, Report, Value

Whole = Annotated[int, pydantic.Strict()]
Number = Annotated[float, pydantic.Strict()]
Switch = Annotated[bool, pydantic.Strict()]

_adapters: dict[type[Any], pydantic.TypeAdapter[Any]] = {}
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "dataclass": "a mapping",
}
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def known_keys(shape: type[Any], values: Mapping[str, Value], path: Path, report: Report) -> dict[str, Value]:
    """The items of `values` that `shape` has fields for; a problem for each other key."""
    return report.known(values, path, field_names(shape))


def part_of(shape: type[Any], values: Mapping[str, Value]) -> dict[str, Value]:
    """The items of `values` that `shape` has fields for; others are read by somebody else."""
    return {key: values[key] for key in field_names(shape) if key in values}


def field_names(shape: type[Any]) -> tuple[str, ...]:
    """The parameters of a dataclass."""
    return tuple(field.name for field in dataclasses.fields(shape) if field.init)


def build[T](
    shape: type[T],
    values: Mapping[str, object],
    path: Path,
    report: Report,
    *,
    names: Mapping[str, str] | None = None,
) -> T | None:
    """An instance of the dataclass `shape`, or None with all its problems in `report`.

    `values` has only keys that are fields. `names` tells how the user spelled a field, where that differs.
    """
    names = names or {}
    try:
        built = _adapter(shape).validate_python(dict(values))
    except pydantic.ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            location = tuple(
                names.get(part, part) if isinstance(part, str) else part for part in detail["loc"]
            )
            at = (*path, *location)
            report.add(at, _in_words(detail, at, shape, report))
        return None
    # Pydantic takes true for 1 and "nan" for a number: convenient elsewhere, a mistake here.
    sound = True
    for field, value in values.items():
        result = getattr(built, field)
        at = (*path, names.get(field, field))
        if isinstance(value, bool) and type(result) in {int, float}:
            report.add(at, f"expected a number, got {report.shown(at)}")
            sound = False
        elif isinstance(result, float) and not math.isfinite(result):
            report.add(at, f"expected a finite number, got {report.shown(at)}")
            sound = False
    return built if sound else None


def _adapter[T](shape: type[T]) -> pydantic.TypeAdapter[T]:
    if shape not in _adapters:
        _adapters[shape] = pydantic.TypeAdapter(shape)
    return _adapters[shape]


def _in_words(detail: ErrorDetails, at: Path, shape: type[Any], report: Report) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = report.shown(at)
    match kind:
        case "missing":
            return f"the key '{at[-1]}' is missing"
        case "value_error":
            return str(context["error"])
        case "literal_error" | "enum":
            expected = str(context["expected"])
            return f"{shown} is not one of {expected.replace(' or ', ', ')}"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "string_too_long":
            return f"longer than {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"{shown} does not have the form {context['pattern']}"
        case "string_unicode":
            return "not valid Unicode text"
        case _ if kind in _LIMITS:
            return f"{shown} is not {_limits(detail, shape)}"
    if expected_kind := _EXPECTED.get(kind.partition("_")[0]):
        return f"expected {expected_kind}, got {shown}"
    said = detail["msg"]
    return f"{shown} is not valid: {said[:1].lower()}{said[1:]}".replace("input should be", "expected")


def _limits(detail: ErrorDetails, shape: type[Any]) -> str:
    """Both bounds of the field, or of its items, where it has two, else the one that was broken."""
    key = _LIMITS[detail["type"]][0]
    hint = typing.get_type_hints(shape, include_extras=True)[str(detail["loc"][0])]
    inside = typing.get_args(hint)[:1] if len(detail["loc"]) > 1 else (hint,)
    bounds = _bounds(inside[0]) if inside else {}
    if bounds.get(key) != detail["ctx"][key]:
        bounds = {key: detail["ctx"][key]}
    if bounds.keys() >= {"ge", "le"}:
        return f"between {bounds['ge']} and {bounds['le']}"
    return " and ".join(f"{words} {bounds[key]}" for key, words in _LIMITS.values() if key in bounds)


def _bounds(hint: object) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for metadata in FieldInfo.from_annotation(hint).metadata:  # type: ignore[arg-type]
        for kind, key in (
            (annotated_types.Ge, "ge"),
            (annotated_types.Gt, "gt"),
            (annotated_types.Le, "le"),
            (annotated_types.Lt, "lt"),
        ):
            if isinstance(metadata, kind):
                bounds[key] = getattr(metadata, key)
    for part in typing.get_args(hint):
        if typing.get_origin(part) is Annotated:
            bounds |= _bounds(part)
    return bounds
