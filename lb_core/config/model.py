"""What a configuration says, checked and frozen. Nothing here knows of YAML or of Higress."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lb_core.policies import Policy
from lb_core.types import Endpoint


@dataclass(frozen=True, slots=True)
class Listen:
    """Where clients connect. An empty host is every interface; `http2` None is the proxy's own default."""

    host: str
    port: int
    http2: bool | None = None


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A named group of endpoints. `balance` is its own balancing, for requests without a policy."""

    name: str
    endpoints: tuple[Endpoint, ...]
    balance: str = "round_robin"


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route takes: globs, any of each kind; an empty kind matches everything."""

    hosts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """One Redis server; two equal values are the same server with the same credentials.

    Plain servers (`serviceFQDN`, `redis://`) are held as host, port, user name, password and database, so
    that both spellings compare equal. TLS, cluster, sentinel and URLs with options are held as `url`, to be
    opened as it is; `host` and `port` then name its first server. Neither `url` nor `password` is in `repr`.
    """

    host: str
    port: int = 6379
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    timeout_ms: int = field(default=3000, compare=False)
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """A policy with its parameters, and the settings that any policy takes."""

    name: str
    policy: Policy
    """An instance of the class registered under `name`."""
    redis: RedisConfig | None = None
    """Where counts are shared; None keeps them in this process."""
    clean_interval_min: int = 60
    detail_log: bool = True


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """A match with what serves it. `cluster` is None only where the policy chooses the cluster."""

    name: str
    match: Match
    cluster: str | None
    policy: PolicyConfig | None = None
    """None takes the configuration's default policy."""


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. There is always at least one cluster and one route."""

    listen: Listen | None
    clusters: Mapping[str, ClusterConfig]
    routes: tuple[RouteConfig, ...]
    default_policy: PolicyConfig | None
    expose_decision: bool
    hosts: Mapping[str, str]
    """Host names in lower case → addresses. Already applied to `serviceFQDN`, not to endpoints: these keep
    their names for the Host header and for TLS, and the address is looked up when connecting."""
    source: str
    metrics_listen: Listen | None = None
    """Where the balancer's own metrics are served; None serves none."""
