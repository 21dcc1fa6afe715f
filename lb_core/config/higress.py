"""The names that Higress's ai-load-balancer gives things, and ours. No other module knows them.

`lb_config` mixes three sorts of keys: where Redis is, settings that any policy takes, and the policy's own
parameters. `split` takes them apart, and remembers how each was spelled, so that a problem can name the key
that the user wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from lb_core.config import addresses
from lb_core.config.model import RedisConfig
from lb_core.config.report import Path, Report, Value
from lb_core.config.shape import build

POLICY_ALIASES = {"metrics_based": "endpoint_metrics"}

_FIELDS = {
    "redisKeyTTL": "redis_key_ttl_s",
    "maxRequestCount": "max_request_count",
    "cleanInterval": "clean_interval_min",
    "enableDetailLog": "detail_log",
}
_SERVER_KEYS = {
    "servicePort": "port",
    "username": "username",
    "password": "password",
    "database": "database",
}
_REDIS_KEYS = {"redis": "redis", "serviceFQDN": "host", "timeout": "timeout_ms", **_SERVER_KEYS}


@dataclass(frozen=True, slots=True)
class Settings:
    """What any policy takes beside its own parameters."""

    clean_interval_min: Annotated[int, Field(ge=1)] = 60
    """Without effect: what Higress cleans up at this interval is checked here every minute."""
    detail_log: bool = True


_SETTINGS = ("clean_interval_min", "detail_log")


@dataclass(slots=True)
class Split:
    """An `lb_config`, taken apart. `names` maps our names to the user's spelling."""

    redis: dict[str, Value] = field(default_factory=dict)
    settings: dict[str, Value] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def split(
    values: Mapping[str, Value],
    owners: Mapping[str, Sequence[str]],
    policy: str | None,
    path: Path,
    report: Report,
) -> Split:
    """Sort the keys of an `lb_config`. `owners` says which policies have a parameter.

    While the policy is not known, None, the parameters of all are valid.
    """
    result = Split()
    theirs = {ours: name for name, ours in _FIELDS.items()}
    fields = {name for name, policies in owners.items() if policy is None or policy in policies}
    ours = {*fields, *_SETTINGS}
    elsewhere = {
        spelled: f"to the polic{'y' if len(policies) == 1 else 'ies'} {', '.join(policies)}"
        for name, policies in owners.items()
        for spelled in (name, theirs.get(name, name))
    }
    valid = {theirs.get(name, name) for name in ours} | _REDIS_KEYS.keys()
    known = report.known(
        {key: value for key, value in values.items() if key not in ours}, path, valid, elsewhere=elsewhere
    )
    given = {key: value for key, value in values.items() if key in ours or key in known} | known
    for key, value in given.items():
        if key in _REDIS_KEYS:
            result.redis[key] = value
            continue
        name = _FIELDS.get(key, key)
        part = result.settings if name in _SETTINGS else result.parameters
        if name in part:
            report.add((*path, key), f"'{result.names[name]}' is the same parameter; give one of them")
            continue
        part[name] = value
        result.names[name] = key
    return result


@dataclass(frozen=True, slots=True)
class _Server:
    port: Annotated[int, Field(ge=1, le=65535)] = 6379
    database: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 3000


def redis_config(
    values: Mapping[str, Value], path: Path, report: Report, *, hosts: Mapping[str, str]
) -> RedisConfig | None:
    """The Redis server that an `lb_config` names, or None when it names none or a faulty one."""
    if not values:
        return None
    names = {ours: theirs for theirs, ours in _REDIS_KEYS.items()}
    numbers = {
        _REDIS_KEYS[key]: values[key] for key in ("servicePort", "database", "timeout") if key in values
    }
    server = build(_Server, numbers, path, report, names=names)
    texts = {
        key: _text(values, key, path, report) for key in ("serviceFQDN", "redis", "username", "password")
    }
    for key in _SERVER_KEYS:
        if key in values and "serviceFQDN" not in values:
            instead = (
                "the Redis URL holds it" if "redis" in values else "without serviceFQDN there is no Redis"
            )
            report.add((*path, key), f"belongs to serviceFQDN; {instead}")
    if "redis" in values and "serviceFQDN" in values:
        report.add((*path, "redis"), "serviceFQDN names a Redis too; give one of them")
        return None
    if "timeout" in values and not {"redis", "serviceFQDN"} & values.keys():
        report.add((*path, "timeout"), "belongs to serviceFQDN or redis; neither is given")
    if server is None:
        return None
    at = (*path, "redis" if "redis" in values else "serviceFQDN")
    try:
        if texts["redis"]:
            return addresses.redis_url(texts["redis"], timeout_ms=server.timeout_ms, hosts=hosts)
        if texts["serviceFQDN"]:
            host = addresses.host_name(texts["serviceFQDN"])
            return RedisConfig(
                hosts.get(host, host),
                server.port,
                texts["username"],
                texts["password"],
                server.database,
                server.timeout_ms,
            )
    except ValueError as error:
        report.add(at, str(error))
    return None


def _text(values: Mapping[str, Value], key: str, path: Path, report: Report) -> str:
    """A text as it was written: an unquoted password of digits is those digits, not a number."""
    if key not in values:
        return ""
    text = report.text((*path, key))
    if text is None:
        report.add((*path, key), "expected text")
    elif not text and key in {"redis", "serviceFQDN"}:
        report.add((*path, key), "must not be empty; leave the key out for counts in this process")
    return text or ""
