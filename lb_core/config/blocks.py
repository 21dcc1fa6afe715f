"""The blocks `health`, `metrics`, `retry` and `timeouts`. A faulty one comes out as its defaults."""

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from lb_core.config import addresses
from lb_core.config.model import MetricsConfig, Timeouts
from lb_core.config.report import Path, Report, Value, kind, nearest
from lb_core.config.shape import build, field_names
from lb_core.engines.dialects import DIALECTS
from lb_core.health.config import ChecksConfig, HealthConfig
from lb_core.policies.headers import TOKEN
from lb_core.retry import RetryConfig

_METRICS_KEYS = {"scrape_interval": "scrape_interval_s", "stale_after": "stale_after_s"}
_TIMEOUTS_KEYS = {"ttft_timeout": "ttft_timeout_s", "stream_idle": "stream_idle_s"}

_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")
_FRAMING = frozenset({"connection", "content-length", "te", "trailer", "transfer-encoding", "upgrade"})


def read_health(values: Mapping[str, Value], at: Path, report: Report) -> HealthConfig:
    """The `health` of a cluster. `checks: true` is checks with their defaults."""
    at = (*at, "health")
    raw = report.known(report.mapping(values.get("health", {}), at), at, field_names(HealthConfig))
    checks = None
    if "checks" in raw and (given := raw.pop("checks")) is not False:
        checks = ChecksConfig() if given is True else _checks(given, (*at, "checks"), report)
    found = _built(HealthConfig, raw, at, report, others={"checks": checks})
    return found or HealthConfig()


def _checks(value: Value, at: Path, report: Report) -> ChecksConfig | None:
    raw = dict(report.mapping(value, at))
    if raw.get("path"):  # nothing is a path too: it only connects
        _page_path(raw, at, report)
    return _built(ChecksConfig, raw, at, report)


def read_metrics(values: Mapping[str, Value], at: Path, report: Report) -> MetricsConfig | None:
    """The `metrics` of a cluster. `false` is None, `true` is the defaults."""
    at = (*at, "metrics")
    given = values.get("metrics", {})
    if given is False:
        return None
    raw = {} if given is True else dict(report.mapping(given, at))
    _page_path(raw, at, report)
    headers = _headers(raw.pop("headers", {}), (*at, "headers"), report)
    _check_dialect(raw, at, report)
    found = _built(MetricsConfig, raw, at, report, spelled=_METRICS_KEYS, others={"headers": headers})
    if found is None:
        return MetricsConfig()
    least_s = 2 * found.scrape_interval_s  # visits are early or late, and take their time
    if "stale_after" in raw and found.stale_after_s < least_s:
        report.add(
            (*at, "stale_after"),
            f"{found.stale_after_s:g} s is less than twice scrape_interval, {found.scrape_interval_s:g} s:"
            " what is known would be stale before the next page came",
        )
    return replace(found, stale_after_s=max(found.stale_after_s, least_s))


def read_retry(values: Mapping[str, Value], at: Path, report: Report) -> RetryConfig:
    """The `retry` of a route, or of the top level. `false` is off, `true` is the defaults."""
    at = (*at, "retry")
    given = values.get("retry", {})
    raw = {"enabled": given} if isinstance(given, bool) else report.mapping(given, at)
    return _built(RetryConfig, raw, at, report) or RetryConfig()


def read_timeouts(values: Mapping[str, Value], at: Path, report: Report) -> Timeouts:
    """The `timeouts` of a route, or of the top level. `off` and 0 are none."""
    at = (*at, "timeouts")
    raw = dict(report.mapping(values.get("timeouts", {}), at))
    for key in _TIMEOUTS_KEYS.keys() & raw.keys():
        value = raw[key]
        if value is None or value is True:
            report.add((*at, key), f"expected seconds or off, got {report.shown((*at, key))}")
            del raw[key]
        elif value in (False, "off"):  # 0 is False
            raw[key] = None
    return _built(Timeouts, raw, at, report, spelled=_TIMEOUTS_KEYS) or Timeouts()


def _built[T](
    shape: type[T],
    raw: Mapping[str, Value],
    at: Path,
    report: Report,
    *,
    spelled: Mapping[str, str] = MappingProxyType({}),
    others: Mapping[str, object] = MappingProxyType({}),
) -> T | None:
    """A block, or None. `spelled` are keys that fields have other names for; `others` are read already."""
    names = {field: key for key, field in spelled.items()}
    fields = {names.get(field, field): field for field in field_names(shape)}
    values = {fields[key]: value for key, value in report.known(raw, at, fields).items()}
    return build(shape, {**values, **others}, at, report, names=names)


def _page_path(raw: dict[str, Value], at: Path, report: Report) -> None:
    """Check the `path`, and take out a faulty one."""
    if isinstance(path := raw.get("path"), str):
        try:
            addresses.page_path(path)
        except ValueError as error:
            report.add((*at, "path"), str(error))
            del raw["path"]


def _check_dialect(raw: dict[str, Value], at: Path, report: Report) -> None:
    dialect, at = raw.get("dialect"), (*at, "dialect")
    if isinstance(dialect, str) and dialect not in DIALECTS:
        near = nearest(dialect, DIALECTS) or ";"
        report.add(at, f"unknown dialect {report.shown(at)}{near} valid dialects: {', '.join(DIALECTS)}")
        del raw["dialect"]


def _headers(value: Value, at: Path, report: Report) -> dict[str, str]:
    """Headers as they were written: digits without quotes are these digits.

    Where a name may be a value whose colon was forgotten, only its line is told.
    """
    headers: dict[str, str] = {}
    lower: set[str] = set()
    for name, given in report.mapping(value, at).items():
        place = (*at, name)
        text = report.text(place)
        if not TOKEN.fullmatch(name):
            report.add(at, "a header's name is not valid", line=report.line(place))
        elif given is None:
            report.add(at, "a header has no value", line=report.line(place))
        elif text is None:
            report.add(place, f"expected text, got {kind(given)}")
        elif name.lower() in _FRAMING:
            report.add(place, "HTTP itself needs this header; leave it out")
        elif name.lower() in lower:
            report.add(place, "given twice; upper and lower case are the same in a header's name")
        elif not _HEADER_VALUE.fullmatch(text):
            report.add(place, "not valid in a header: printable ASCII, without spaces at the ends")
        else:
            headers[name] = text
        lower.add(name.lower())
    return headers
