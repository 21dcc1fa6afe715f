"""Builds the working parts from a configuration and owns what runs in the background."""

import time
from collections.abc import Callable, Iterator
from typing import Self

from prometheus_client import start_http_server

from lb_core.balancer import Balancer, Match, Route
from lb_core.cluster import Cluster
from lb_core.config import ClusterConfig, Config, PolicyConfig, RouteConfig, policy_named
from lb_core.errors import ConfigError, Problem
from lb_core.policies import POLICIES
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.prefix.base import PrefixIndex
from lb_core.prefix.finder import PrefixFinder
from lb_core.prefix.memory import MemoryPrefixIndex
from lb_core.prefix.redis import RedisPrefixIndex
from lb_core.stats import Stats
from lb_core.stores.base import Store
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Link, Links
from lb_core.stores.memory import MemoryStore
from lb_core.stores.redis import RedisStore

POLICY_OFF = "off"
"""The name that stands for each cluster's own strategy."""


class Runtime:
    """One balancer at work. Build it anywhere; `start` and `close` belong to the event loop."""

    def __init__(self, config: Config, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.config = config
        self.stats = Stats()
        self._clock = clock
        self._links = Links()
        self.clusters = {name: self._cluster(cluster) for name, cluster in config.clusters.items()}
        default = config.default_policy
        self.balancer = Balancer(
            tuple(self._route(route) for route in config.routes),
            default_policy=default.policy if default else None,
            stats=self.stats,
            clock=clock,
        )
        self.stats.watch_in_flight(self.in_flight)
        self._stop_metrics: Callable[[], None] | None = None

    async def start(self) -> Self:
        """Start what runs in the background, and wait until Redis answered or is known to be away.

        Raises OSError when the metrics address cannot be had.
        """
        for cluster in self.clusters.values():
            if isinstance(cluster.store, RedisStore):
                cluster.store.start()
        if (listen := self.config.metrics_listen) is not None:
            server, thread = start_http_server(listen.port, listen.host, registry=self.stats.registry)

            def stop() -> None:
                server.shutdown()
                server.server_close()
                thread.join()

            self._stop_metrics = stop
        await self._links.settled()
        return self

    async def close(self) -> None:
        """Give back everything that is held and stop what runs."""
        for cluster in self.clusters.values():
            await cluster.close()
        await self._links.close()
        if self._stop_metrics is not None:
            self._stop_metrics()
            self._stop_metrics = None

    def in_flight(self) -> dict[str, dict[str, int]]:
        """Requests in flight by cluster and endpoint, endpoints without requests included."""
        return {
            name: {
                endpoint.name: cluster.store.in_flight.get(endpoint.name, 0) for endpoint in cluster.endpoints
            }
            for name, cluster in self.clusters.items()
        }

    def use_policy(self, name: str) -> None:
        """Change the policy of the routes that have none of their own, from the next request on.

        "" is the configured one, "off" each cluster's own strategy. Raises ConfigError for an unknown
        name, and changes nothing then.
        """
        if name == "":
            chosen = self.config.default_policy
        elif name == POLICY_OFF:
            chosen = None
        else:
            chosen = policy_named(name, self.config)
        self.balancer.default_policy = chosen.policy if chosen else None

    def _route(self, route: RouteConfig) -> Route:
        if route.cluster is None:
            raise ConfigError(self.config.source, (Problem(route.name, "a cluster is required"),))
        match = Match.of(hosts=route.match.hosts, paths=route.match.paths, models=route.match.models)
        policy = route.policy.policy if route.policy else None
        return Route(route.name, match, self.clusters[route.cluster], policy)

    def _cluster(self, config: ClusterConfig) -> Cluster:
        name = config.name
        shared = next((policy for policy in self._policies_on(name) if policy.redis is not None), None)
        link = self._link(name, shared)

        def new_finder(policy: PrefixCache) -> PrefixFinder:
            index: PrefixIndex
            if link is not None:
                index = RedisPrefixIndex(link, name, ttl_s=policy.redis_key_ttl_s)
            else:
                ttl_s, most = policy.redis_key_ttl_s, policy.max_prefix_entries
                index = MemoryPrefixIndex(ttl_s=ttl_s, max_entries=most, clock=self._clock)
            return PrefixFinder(name, index, tenant_header=policy.tenant_header, secret=policy.secret)

        store: Store
        if link is not None and shared is not None:
            store = RedisStore(name, link, clean_interval_min=shared.clean_interval_min)
        else:
            store = MemoryStore(name)
        return Cluster(name, config.endpoints, store, POLICIES[config.balance](), new_finder)

    def _link(self, cluster: str, policy: PolicyConfig | None) -> Link | None:
        if policy is None or policy.redis is None:
            return None
        try:
            return self._links.to(policy.redis, key(cluster, COUNTS))
        except ValueError as error:
            raise ConfigError(self.config.source, (Problem("redis", str(error)),)) from error

    def _policies_on(self, cluster: str) -> Iterator[PolicyConfig]:
        for route in self.config.routes:
            policy = route.policy or self.config.default_policy
            if route.cluster == cluster and policy is not None:
                yield policy
