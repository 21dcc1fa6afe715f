"""The configuration file → frozen values, or an error that names everything wrong with it, line by line.

The way of a file: `source` reads the text, `check` takes the document apart, with `clusters`, `routes`,
`blocks`, `policy` and `higress` for its parts, `shape` for validation and `report` for what is found; `model`
is what comes out.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from lb_core.config.advice import warnings
from lb_core.config.check import read_config
from lb_core.config.clusters import read_endpoints
from lb_core.config.model import (
    ClusterConfig,
    Config,
    DnsEndpoints,
    Listen,
    Match,
    MetricsConfig,
    PolicyConfig,
    RedisConfig,
    RouteConfig,
    Timeouts,
)
from lb_core.config.policy import default_policy, endpoint_policy, policy_named
from lb_core.config.report import Report
from lb_core.config.source import parse, parse_value, read_text
from lb_core.health.config import ChecksConfig, HealthConfig
from lb_core.retry import RetryConfig
from lb_core.types import Endpoint


def load(path: Path, *, env: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a file. Raises ConfigError with all problems, in the order of their lines."""
    return loads(read_text(path), str(path), env)


def loads(text: str, source_name: str = "<text>", env: Mapping[str, str] = os.environ) -> Config:
    """The configuration in a text, which messages call `source_name`. Raises ConfigError like `load`."""
    report = Report(source_name)
    values = parse(text, report, env)
    return read_config(values, report)


def load_endpoints(
    path: Path,
    cluster_name: str,
    *,
    hosts: Mapping[str, str] = MappingProxyType({}),
    env: Mapping[str, str] = os.environ,
) -> tuple[Endpoint, ...]:
    """The endpoints in a cluster's `endpoints_file`: a list as under `endpoints`, in YAML or JSON.

    An empty list is one; an empty file, which may be half written, is not. `hosts` are the configuration's;
    DNS names are for that only. Raises ConfigError like `load`. Whether the names are those of other
    clusters' endpoints is not known here.
    """
    report = Report(str(path))
    text = read_text(path)
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # white space to JSON, where YAML has none; never within a text
    values = parse_value(text, report, env, expected="a list of endpoints")
    endpoints = read_endpoints(cluster_name, values, report, hosts=hosts)
    if not report.clean:
        raise report.error()
    return endpoints


__all__ = [
    "ChecksConfig",
    "ClusterConfig",
    "Config",
    "DnsEndpoints",
    "HealthConfig",
    "Listen",
    "Match",
    "MetricsConfig",
    "PolicyConfig",
    "RedisConfig",
    "RetryConfig",
    "RouteConfig",
    "Timeouts",
    "default_policy",
    "endpoint_policy",
    "load",
    "load_endpoints",
    "loads",
    "policy_named",
    "warnings",
]
