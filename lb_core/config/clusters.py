"""`clusters` → clusters and their endpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2s
from pathlib import Path as FilePath
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from lb_core.config import addresses
from lb_core.config.blocks import read_health, read_metrics
from lb_core.config.model import ClusterConfig, DnsEndpoints
from lb_core.config.report import Path, Report, Value, path_text
from lb_core.config.shape import Number, Switch, Whole, build, field_names, known_keys, part_of
from lb_core.types import Endpoint

LONGEST_NAME = 128
_DIGITS = 12
"""Of the names of endpoints that have none. With 6 two of 700 addresses were alike; 12 do for a million."""
_DNS = "dns+"


def checked_name(text: str) -> str:
    """`text` as the name of something; a ValueError where logs, labels and Redis keys could not hold it."""
    if not text or len(text) > LONGEST_NAME:
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters")
    if any(character.isspace() or not character.isprintable() or character in "{}" for character in text):
        raise ValueError("a name has no white space, control characters or braces")
    return text


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _url(value: object) -> tuple[str, str, int]:
    return addresses.endpoint_url(value if isinstance(value, str) else "")


Name = Annotated[str, AfterValidator(checked_name)]
Globs = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_one_or_many)]


@dataclass(frozen=True, slots=True)
class _ClusterKeys:
    balance: Literal["round_robin", "least_request", "random", "consistent_hash"] = "round_robin"
    endpoints_file: Annotated[str, Field(min_length=1)] | None = None


KEYS = (*field_names(_ClusterKeys), "endpoints", "health", "metrics")
NOT_HERE = dict.fromkeys(KEYS, "under clusters.NAME")
"""Of the keys of a cluster that stand elsewhere, where they belong."""

_ELSEWHERE = dict.fromkeys(
    ("retry", "timeouts", "lb_type", "lb_policy", "lb_config"), "to the top level or a route"
)


@dataclass(frozen=True, slots=True)
class _EndpointKeys:
    url: Annotated[tuple[str, str, int], PlainValidator(_url)]
    name: Name | None = None
    weight: Annotated[Number, Field(gt=0, le=1000)] = 1.0
    max_in_flight: Annotated[Whole, Field(ge=1)] | None = None
    models: Globs = ()
    draining: Switch = False


def read_clusters(
    values: Mapping[str, Value], report: Report, *, hosts: Mapping[str, str]
) -> dict[str, ClusterConfig]:
    """The clusters without fault; problems for the others. `hosts` are addresses of host names."""
    owners: dict[str, Path] = {}
    clusters: dict[str, ClusterConfig] = {}
    for name, raw in values.items():
        at = ("clusters", name)
        try:
            checked_name(name)
        except ValueError as error:
            report.add(at, str(error))
        cluster = report.known(report.mapping(raw, at), at, KEYS, elsewhere=_ELSEWHERE)
        if isinstance(raw, dict) and not {"endpoints", "endpoints_file"} & cluster.keys():
            report.add(at, "the key 'endpoints' is missing")
        keys = build(_ClusterKeys, part_of(_ClusterKeys, cluster), at, report)
        listed = cluster.get("endpoints", [])
        endpoints, dns = _endpoints(name, listed, (*at, "endpoints"), report, owners, hosts=hosts)
        health = read_health(cluster, at, report)
        metrics = read_metrics(cluster, at, report)
        if keys is not None:
            file = FilePath(report.source).parent / keys.endpoints_file if keys.endpoints_file else None
            clusters[name] = ClusterConfig(name, endpoints, keys.balance, health, metrics, dns, file)
    return clusters


def read_endpoints(
    cluster: str, value: Value, report: Report, *, hosts: Mapping[str, str]
) -> tuple[Endpoint, ...]:
    """The endpoints without fault of a document that is nothing but a list of them."""
    return _endpoints(cluster, value, (), report, {}, hosts=hosts, dns=False)[0]


def undeclared(name: str, *, hosts: Mapping[str, str]) -> ClusterConfig:
    """The cluster of one endpoint that an Envoy name stands for; a ValueError where it is none."""
    scheme, host, port = addresses.envoy_name(name)
    checked_name(name)
    return ClusterConfig(name, (_located(Endpoint(name, scheme, host, port), hosts),))


def _located(endpoint: Endpoint, hosts: Mapping[str, str]) -> Endpoint:
    """The endpoint at the address that `hosts` gives to its name; TLS and the Host header keep the name."""
    if (address := hosts.get(endpoint.host)) is None:
        return endpoint
    return replace(endpoint, host=address, server_name=endpoint.host)


def _endpoints(
    cluster: str,
    value: Value,
    at: Path,
    report: Report,
    owners: dict[str, Path],
    *,
    hosts: Mapping[str, str],
    dns: bool = True,
) -> tuple[tuple[Endpoint, ...], tuple[DnsEndpoints, ...]]:
    """The endpoints without fault; `owners` are the places of all endpoint names so far.

    Without `dns` a DNS name is a fault.
    """
    found: dict[tuple[str, str, int], Endpoint] = {}
    for index, item in enumerate(report.sequence(value, at)):
        place = (*at, index)
        keys = _endpoint_keys(item, place, report)
        if keys is None:
            continue
        scheme, host, port = keys.url
        endpoint = Endpoint(
            keys.name or _default_name(cluster, *keys.url),
            scheme.removeprefix(_DNS),
            host,
            port,
            weight=keys.weight,
            max_in_flight=keys.max_in_flight,
            models=keys.models,
            draining=keys.draining,
        )
        if keys.url in found:
            report.add((*place, "url"), f"the same URL as endpoint '{found[keys.url].name}' of this cluster")
        elif endpoint.name in owners:
            owner = path_text(owners[endpoint.name])
            report.add((*place, "name"), f"the name '{endpoint.name}' belongs to {owner} already")
        else:
            found[keys.url] = endpoint
            owners[endpoint.name] = place
        if scheme.startswith(_DNS) and not dns:
            report.add((*place, "url"), "DNS names go into the configuration, not into this file")
    return (
        tuple(_located(endpoint, hosts) for url, endpoint in found.items() if not url[0].startswith(_DNS)),
        tuple(DnsEndpoints(endpoint) for url, endpoint in found.items() if url[0].startswith(_DNS)),
    )


def _endpoint_keys(item: Value, at: Path, report: Report) -> _EndpointKeys | None:
    if isinstance(item, str):
        return build(_EndpointKeys, {"url": item}, at, report)
    if isinstance(item, dict):
        return build(_EndpointKeys, known_keys(_EndpointKeys, item, at, report), at, report)
    report.add(at, f"expected a URL or a mapping with 'url', got {report.shown(at)}")
    return None


def _default_name(cluster: str, scheme: str, host: str, port: int) -> str:
    """The same after every reload, whatever the order. It tells no address: clients are shown names."""
    return f"{cluster}-{blake2s(f'{scheme}://{host}:{port}'.encode()).hexdigest()[:_DIGITS]}"
