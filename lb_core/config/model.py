"""What a configuration says, checked and frozen. Nothing here knows of YAML or of Higress."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lb_core.engines.model import STALE_AFTER_S
from lb_core.health.config import HealthConfig
from lb_core.policies import ClusterPolicy, Policy
from lb_core.retry import RetryConfig
from lb_core.types import Endpoint

_Wait = Annotated[float, Field(gt=0, le=86_400)]


@dataclass(frozen=True, slots=True)
class Listen:
    """Where clients connect. `0.0.0.0` is every interface; `http2` None is the proxy's own default."""

    host: str
    port: int
    http2: bool | None = None


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """How the engines of a cluster are asked for their metrics: GET `path` every `scrape_interval_s`."""

    path: str = "/metrics"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """Sent along, as spelled. They may hold keys, so they are never shown."""
    scrape_interval_s: Annotated[float, Field(ge=0.1, le=3_600)] = 1.0
    dialect: str | None = None
    """A key of `lb_core.engines.dialects.DIALECTS`; None chooses by what the page has."""
    stale_after_s: Annotated[float, Field(ge=0.1, le=86_400)] = STALE_AFTER_S
    """What is older counts as unknown; in a configuration never less than two intervals."""


@dataclass(frozen=True, slots=True)
class DnsEndpoints:
    """All addresses of a DNS name, written `dns+http://name:port`.

    Each is an endpoint as `template`, whose host is the DNS name.
    """

    template: Endpoint


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A named group of endpoints. `balance` is its own balancing, for requests without a policy."""

    name: str
    endpoints: tuple[Endpoint, ...]
    """Those that the configuration lists with their addresses."""
    balance: str = "round_robin"
    health: HealthConfig = field(default_factory=HealthConfig)
    metrics: MetricsConfig | None = field(default_factory=MetricsConfig)
    """None leaves its engines unasked."""
    dns: tuple[DnsEndpoints, ...] = ()
    endpoints_file: Path | None = None
    """Lists further endpoints and may change at any time; read it with `load_endpoints`."""


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
    located: tuple[tuple[str, str], ...] = ()
    """Names of servers of a `url`, in lower case, with the addresses that `hosts` gives them."""


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """A policy with its parameters, and the settings that any policy takes."""

    name: str
    policy: Policy | ClusterPolicy
    """An instance of the class registered under `name`."""
    redis: RedisConfig | None = None
    """Where counts are shared; None keeps them in this process."""
    detail_log: bool = True


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a request waits for its endpoint; None waits for ever."""

    ttft_timeout_s: _Wait | None = None
    """For the first content. None by default: a long prompt in a long queue takes its time."""
    stream_idle_s: _Wait | None = 120.0
    """Between two pieces of a response that has begun."""


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """A match with what serves it. `cluster` is None only where the policy chooses the cluster."""

    name: str
    match: Match
    cluster: str | None
    policy: PolicyConfig | None = None
    """None takes the configuration's default policy."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. There is always at least one cluster and one route."""

    listen: Listen | None
    clusters: Mapping[str, ClusterConfig]
    routes: tuple[RouteConfig, ...]
    default_policy: PolicyConfig | None
    expose_decision: bool
    hosts: Mapping[str, str]
    """Host names in lower case → addresses. Already applied to all that the configuration lists."""
    source: str
    metrics_listen: Listen | None = None
    """Where the balancer's own metrics are served; None serves none."""
    drain_timeout_s: float = 30.0
    """How long requests in flight may take to end when the balancer ends."""

    def policies(self) -> Iterator[PolicyConfig]:
        """The default policy and those of the routes."""
        for policy in (self.default_policy, *(route.policy for route in self.routes)):
            if policy is not None:
                yield policy
