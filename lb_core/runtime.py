"""Builds the working parts from a configuration and owns what runs in the background."""

import time
from collections.abc import Callable
from typing import Self

from prometheus_client import start_http_server

from lb_core.balancer import Balancer, Match, Route
from lb_core.cluster import Cluster
from lb_core.config import ClusterConfig, Config, RouteConfig, policy_named
from lb_core.policies import POLICIES
from lb_core.stats import Stats
from lb_core.stores.memory import MemoryStore

POLICY_OFF = "off"
"""The name that stands for each cluster's own strategy."""


class Runtime:
    """One balancer at work. Build it anywhere; `start` and `close` belong to the event loop."""

    def __init__(self, config: Config, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.config = config
        self.stats = Stats()
        self.clusters = {name: _cluster(cluster) for name, cluster in config.clusters.items()}
        default = config.default_policy
        self.balancer = Balancer(
            tuple(self._route(route) for route in config.routes),
            default_policy=default.policy if default else None,
            stats=self.stats,
            clock=clock,
        )
        self.stats.watch_in_flight(self.in_flight)
        self._stop_metrics: Callable[[], None] | None = None

    def start(self) -> Self:
        """Start what runs in the background. Raises OSError when the metrics address cannot be had."""
        if (listen := self.config.metrics_listen) is not None:
            server, thread = start_http_server(listen.port, listen.host, registry=self.stats.registry)

            def stop() -> None:
                server.shutdown()
                server.server_close()
                thread.join()

            self._stop_metrics = stop
        return self

    async def close(self) -> None:
        """Give back everything that is held and stop what runs."""
        for cluster in self.clusters.values():
            await cluster.store.close()
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
        assert route.cluster is not None, "no policy that chooses clusters is registered"
        match = Match.of(hosts=route.match.hosts, paths=route.match.paths, models=route.match.models)
        policy = route.policy.policy if route.policy else None
        return Route(route.name, match, self.clusters[route.cluster], policy)


def _cluster(config: ClusterConfig) -> Cluster:
    return Cluster(config.name, config.endpoints, MemoryStore(config.name), POLICIES[config.balance]())
