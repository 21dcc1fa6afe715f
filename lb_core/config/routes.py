"""`routes` → matches with their clusters and policies, and what must hold between these."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lb_core.config.blocks import read_retry, read_timeouts
from lb_core.config.clusters import NOT_HERE, Globs, Name, undeclared
from lb_core.config.model import ClusterConfig, Match, PolicyConfig, RedisConfig, RouteConfig
from lb_core.config.policy import KEYS as POLICY_KEYS
from lb_core.config.policy import (
    chooses_cluster,
    listed_services,
    metrics_fault,
    read_policy,
    services,
)
from lb_core.config.report import Path, Report, Value, nearest
from lb_core.config.shape import build, field_names, known_keys, part_of

KEYS = (*POLICY_KEYS, "retry", "timeouts")
"""Keys of a route that at the top level are for the routes without them."""


@dataclass(frozen=True, slots=True)
class _RouteKeys:
    name: Name | None = None
    cluster: str | None = None


@dataclass(frozen=True, slots=True)
class _MatchKeys:
    hosts: Globs = ()
    paths: Globs = ()
    models: Globs = ()


class RouteReader:
    """Reads the routes of one document, given what the rest of it says."""

    def __init__(
        self,
        top: Mapping[str, Value],
        report: Report,
        *,
        clusters: Sequence[str],
        without_metrics: Collection[str],
        hosts: Mapping[str, str],
    ) -> None:
        self._top = top
        self._report = report
        self._clusters = clusters
        self._without_metrics = without_metrics
        self._hosts = hosts
        self.undeclared: dict[str, ClusterConfig] = {}
        """The services that are Envoy names and not clusters of the document."""
        self.chooses_clusters = False
        """Whether any policy chooses among clusters, as far as a possibly faulty document tells."""
        self.default_policy = self._policy(top, ())
        self._default_chooses = chooses_cluster(top, self.default_policy)
        self._default_retry = read_retry(top, (), report)
        self._default_timeouts = read_timeouts(top, (), report)

    def routes(self) -> tuple[RouteConfig, ...]:
        """The routes without fault; one for everything where the document has none."""
        raw = self._report.sequence(self._top.get("routes", []), ("routes",))
        if "routes" not in self._top or self._top["routes"] == []:
            return self._implicit()
        owners: dict[str, Path] = {}
        servers: dict[str, tuple[RedisConfig, str]] = {}
        routes: list[RouteConfig] = []
        for index, item in enumerate(raw):
            at: Path = ("routes", index)
            if not isinstance(item, dict):
                self._report.mapping(item, at)
                continue
            route = self._route(item, at, f"route-{index + 1}")
            if route is None:
                continue
            if route.name in owners:
                self._report.add((*at, "name"), f"the name '{route.name}' belongs to another route already")
            owners[route.name] = at
            self._check_redis(route, at, servers)
            routes.append(route)
        return tuple(routes)

    def _implicit(self) -> tuple[RouteConfig, ...]:
        if self._default_chooses:
            return (self._for_everything(None),)
        if len(self._clusters) > 1:
            self._report.add(
                ("clusters",), "several clusters need 'routes' that tell which requests go where"
            )
        for name in self._clusters:
            self._check_metrics(("lb_policy",), name, self.default_policy)
        return tuple(self._for_everything(name) for name in self._clusters)

    def _for_everything(self, cluster: str | None) -> RouteConfig:
        return RouteConfig("default", Match(), cluster, None, self._default_retry, self._default_timeouts)

    def _route(self, values: dict[str, Value], at: Path, default_name: str) -> RouteConfig | None:
        values = self._report.known(
            values, at, (*field_names(_RouteKeys), "match", *KEYS), elsewhere=NOT_HERE
        )
        keys = build(_RouteKeys, part_of(_RouteKeys, values), at, self._report)
        match = self._match(values, (*at, "match"))
        policy = self._policy(values, at)
        retry = read_retry(values, at, self._report) if "retry" in values else self._default_retry
        timeouts = read_timeouts(values, at, self._report) if "timeouts" in values else self._default_timeouts
        own = any(key in values for key in POLICY_KEYS)
        chooses = self._default_chooses
        if own:
            chooses = chooses_cluster(values, policy)
        cluster = values.get("cluster")
        if chooses and "cluster" in values:
            whose = "the route's" if own else "the default"
            self._report.add((*at, "cluster"), f"{whose} policy chooses the cluster; leave this key out")
        elif isinstance(cluster, str):
            self._check_cluster((*at, "cluster"), cluster)
            place = (*at, "lb_policy" if own else "cluster")
            self._check_metrics(place, cluster, policy if own else self.default_policy)
        elif cluster is None and not chooses:
            self._report.add(at, "the key 'cluster' is missing")
        if keys is None:
            return None
        return RouteConfig(keys.name or default_name, match, keys.cluster, policy, retry, timeouts)

    def _match(self, values: Mapping[str, Value], at: Path) -> Match:
        raw = self._report.mapping(values.get("match", {}), at)
        keys = build(_MatchKeys, known_keys(_MatchKeys, raw, at, self._report), at, self._report)
        return Match(keys.hosts, keys.paths, keys.models) if keys else Match()

    def _policy(self, values: Mapping[str, Value], at: Path) -> PolicyConfig | None:
        policy = read_policy(values, at, self._report, hosts=self._hosts)
        if chooses_cluster(values, policy):
            self.chooses_clusters = True
            for index, service in enumerate(services(policy) or listed_services(values)):
                if isinstance(service, str):
                    self._check_service((*at, "lb_config", "service_list", index), service)
        return policy

    def _check_service(self, at: Path, name: str) -> None:
        if name in self._clusters or "|" not in name:
            self._check_cluster(at, name)
            return
        try:
            self.undeclared[name] = undeclared(name, hosts=self._hosts)
        except ValueError as error:
            self._report.add(at, str(error))

    def _check_cluster(self, at: Path, name: str) -> None:
        if name not in self._clusters:
            near = nearest(name, self._clusters)
            self._report.add(at, f"no cluster is named {self._report.shown(at)}{near}")

    def _check_metrics(self, at: Path, cluster: str, policy: PolicyConfig | None) -> None:
        if policy is None or cluster not in self._without_metrics:
            return
        if fault := metrics_fault(policy, cluster):
            self._report.add(at, fault)

    def _check_redis(self, route: RouteConfig, at: Path, servers: dict[str, tuple[RedisConfig, str]]) -> None:
        """Counts belong to the endpoint, so whoever reaches it must find them in the same place."""
        policy = route.policy or self.default_policy
        if policy is None or policy.redis is None:
            return
        for cluster in [route.cluster] if route.cluster else services(policy):
            redis, first = servers.setdefault(cluster, (policy.redis, route.name))
            if redis != policy.redis:
                where = (*at, "lb_config") if route.policy else at
                self._report.add(
                    where,
                    f"route '{first}' reaches cluster '{cluster}' with another Redis;"
                    " the requests in flight at a cluster are counted in one place",
                )
