"""The whole document → `Config`: each part is read on its own, so that one fault hides no other."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

from pydantic import AfterValidator, Field

from lb_core.config import addresses
from lb_core.config.clusters import NOT_HERE, read_clusters
from lb_core.config.model import ClusterConfig, Config, Listen
from lb_core.config.report import Path, Report, Value
from lb_core.config.routes import KEYS as ROUTE_KEYS
from lb_core.config.routes import RouteReader
from lb_core.config.shape import Number, Switch, Whole, build, field_names, known_keys, part_of


@dataclass(frozen=True, slots=True)
class _TopKeys:
    expose_decision: Switch = False
    drain_timeout: Annotated[Number, Field(ge=0, le=3600)] = 30.0


@dataclass(frozen=True, slots=True)
class _ListenKeys:
    port: Annotated[Whole, Field(ge=1, le=65535)]
    host: Annotated[str, AfterValidator(addresses.host_name)] = addresses.LOOPBACK
    http2: Switch | None = None


def read_config(values: dict[str, Value], report: Report) -> Config:
    """The configuration that a document holds. Raises ConfigError with everything that is wrong in it."""
    values = report.known(
        values,
        (),
        (*field_names(_TopKeys), "listen", "metrics_listen", "hosts", "clusters", "routes", *ROUTE_KEYS),
        elsewhere=NOT_HERE | {"match": "under routes"},
    )
    top = build(_TopKeys, part_of(_TopKeys, values), (), report)
    listen = _listen(values, "listen", report)
    metrics_listen = _listen(values, "metrics_listen", report)
    hosts = _hosts(report.mapping(values.get("hosts", {}), ("hosts",)), report)
    if "clusters" in values:
        raw_clusters = report.mapping(values["clusters"], ("clusters",))
        if values["clusters"] == {}:
            report.add(("clusters",), "at least one cluster is needed")
        clusters = read_clusters(raw_clusters, report, hosts=hosts)
    else:
        raw_clusters, clusters = {}, {}
    reader = RouteReader(
        values,
        report,
        clusters=tuple(raw_clusters),
        without_metrics=[name for name, cluster in clusters.items() if cluster.metrics is None],
        hosts=hosts,
    )
    routes = reader.routes()
    if "clusters" not in values and not reader.chooses_clusters:
        report.add((), "the key 'clusters' is missing")
    _check_apart(clusters, reader.undeclared, report)
    clusters |= reader.undeclared
    if top is None or not report.clean:
        raise report.error()
    return Config(
        listen=listen,
        clusters=MappingProxyType(clusters),
        routes=routes,
        default_policy=reader.default_policy,
        expose_decision=top.expose_decision,
        hosts=MappingProxyType(hosts),
        source=report.source,
        metrics_listen=metrics_listen,
        drain_timeout_s=top.drain_timeout,
    )


def _check_apart(
    clusters: Mapping[str, ClusterConfig], undeclared: Mapping[str, ClusterConfig], report: Report
) -> None:
    """An undeclared service is an endpoint of its own name, and names of endpoints are unique."""
    for cluster in clusters.values():
        for endpoint in (*cluster.endpoints, *(dns.template for dns in cluster.dns)):
            if endpoint.name in undeclared:
                at: Path = ("clusters", cluster.name, "endpoints")
                report.add(at, f"the name '{endpoint.name}' belongs to an undeclared service already")


def _listen(values: Mapping[str, Value], key: str, report: Report) -> Listen | None:
    value = values.get(key)
    if key not in values:
        return None
    if isinstance(value, dict):
        keys = build(_ListenKeys, known_keys(_ListenKeys, value, (key,), report), (key,), report)
        return Listen(keys.host, keys.port, keys.http2) if keys else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        report.add((key,), f"expected an address such as 127.0.0.1:8080, got {report.shown((key,))}")
        return None
    try:
        return addresses.listen(report.text((key,)) or "")
    except ValueError as error:
        shown = report.shown((key,))
        report.add((key,), f"{shown}: {error}; expected an address such as 127.0.0.1:8080")
        return None


def _hosts(values: Mapping[str, Value], report: Report) -> dict[str, str]:
    hosts: dict[str, str] = {}
    for name, address in values.items():
        at: Path = ("hosts", name)
        if not isinstance(address, str):
            report.add(at, f"expected an IP address or host name, got {report.shown(at)}")
            continue
        try:
            hosts[addresses.host_name(name)] = addresses.host_name(address)
        except ValueError as error:
            report.add(at, str(error))
    return hosts
