"""Builds the working parts from a configuration, owns what runs in the background, swaps on reload."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Self

from prometheus_client import make_wsgi_app, start_http_server

from lb_core.assembly import Assembly
from lb_core.balancer import Balancer
from lb_core.cluster import Cluster
from lb_core.config import Config, RouteConfig, default_policy, endpoint_policy
from lb_core.discovery import Discovery
from lb_core.engines.shares import RecentChoices
from lb_core.gauges import expose, present, with_ready
from lb_core.policies import ClusterPolicy
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.retry import RetryBudget
from lb_core.routes import Match, Route, ServiceGroup
from lb_core.services import ServiceBoard
from lb_core.stats import Stats
from lb_core.stores.redis import RedisStore
from lb_core.tasks import spawn
from lb_core.types import Endpoint
from lb_core.visits import Visits

logger = logging.getLogger(__name__)

_TICK_S = 1.0
_METRICS_TRIES = 20


class Runtime:
    """One balancer at work. Build it anywhere; `start` and `close` belong to the event loop.

    Raises ConfigError for what only shows when the parts are built.
    """

    def __init__(self, config: Config, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.stats = Stats()
        self.clusters: dict[str, Cluster] = {}
        self.balancer = Balancer((), default_policy=None, stats=self.stats, clock=clock)
        self._clock = clock
        self._assembly = Assembly(self.stats, clock)
        self._visits = Visits(clock=clock)
        self._retired: list[Cluster] = []
        self._discoveries: dict[str, Discovery] = {}
        self._abandoned: list[Discovery] = []
        self._checks: list[asyncio.Task[None]] = []
        self._boards: dict[ClusterPolicy, ServiceBoard] = {}
        self._policy_name = ""
        self.ready = False
        """Requests are taken: not before the start is over, and not while the balancer is about to end."""
        self._stop_metrics: Callable[[], None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.retry_budget = RetryBudget(clock=clock)
        expose(self.stats, lambda: self.clusters)
        self._take(config)

    def apply(self, config: Config) -> None:
        """Go on with another configuration. Endpoints keep their state by name, requests their place.

        Raises ConfigError, and changes nothing then.
        """
        self._take(config)
        self._start_parts()
        self._aim()

    def trust(self, tls: ssl.SSLContext) -> None:
        """Have checks and visits over https trust endpoints by this from now on."""
        self._assembly.tls = self._visits.tls = tls
        if self._ticker is not None:
            self._start_parts()
            self._aim()

    def _start_parts(self) -> None:
        """Start what the clusters need that has not been started yet, and stop what is of no use any more."""
        for cluster in self.clusters.values():
            if isinstance(cluster.store, RedisStore):
                cluster.store.start()
        for task in self._checks:
            task.cancel()
        checkers = [self._assembly.checker(cluster) for cluster in self.clusters.values()]
        self._checks = [spawn(checker.run(), name="checks") for checker in checkers if checker is not None]
        self._checks += [
            spawn(cluster.health.listen(), name="news of health") for cluster in self.clusters.values()
        ]
        for discovery in self._discoveries.values():
            discovery.start()
        abandoned, self._abandoned = self._abandoned, []
        for discovery in abandoned:
            spawn(discovery.stop(), name="end of a discovery")

    def _members_changed(self, cluster: str, endpoints: tuple[Endpoint, ...]) -> None:
        self.clusters[cluster].members(endpoints)
        self._aim()

    def _take(self, config: Config) -> None:
        default = default_policy(self._policy_name, config)
        clusters = {
            name: self._assembly.cluster(cluster, config, self.clusters.get(name))
            for name, cluster in config.clusters.items()
        }
        # From here on nothing fails.
        self._assembly.set_timeouts(clusters, config)
        self._retired += [each for name, each in self.clusters.items() if clusters.get(name) is not each]
        found = {
            name: self._assembly.discovery(
                settings, config.hosts, self._members_changed, self._discoveries.get(name)
            )
            for name, settings in config.clusters.items()
        }
        for name, cluster in clusters.items():
            discovery, settings = found[name], config.clusters[name]
            endpoints = discovery.members if discovery is not None else settings.endpoints
            self._assembly.update(cluster, settings, endpoints)
        for old in self._discoveries.values():
            old.retire()  # at once: an answer on its way is about clusters that are no more
            self._abandoned.append(old)
        self._discoveries = {name: discovery for name, discovery in found.items() if discovery is not None}
        self.config = config
        self.settings = {route.name: route for route in config.routes}
        self.clusters = clusters
        self.balancer.routes = tuple(self._route(route) for route in config.routes)
        targets = [route.target for route in self.balancer.routes]
        self._boards = {each.policy: each.board for each in targets if isinstance(each, ServiceGroup)}
        self.balancer.default_policy = default
        policies = [default, *(policy.policy for policy in config.policies())]
        for cluster in clusters.values():
            cluster.keep_finders(policies)

    async def start(self) -> Self:
        """Start what runs in the background, and wait until Redis answered or is known to be away.

        Raises OSError when the metrics address cannot be had; all but that runs then.
        """
        self._start_parts()
        self._ticker = spawn(self._tick(), name="housekeeping")
        self._aim()
        await asyncio.gather(
            self._assembly.links.settled(), *(each.settled() for each in self._discoveries.values())
        )
        await self._serve_metrics()
        return self

    async def _serve_metrics(self) -> None:
        listen = self.config.metrics_listen
        if listen is None:
            return
        for left in reversed(range(_METRICS_TRIES)):
            try:
                server, thread = start_http_server(listen.port, listen.host, registry=self.stats.registry)
                server.set_app(with_ready(make_wsgi_app(self.stats.registry), lambda: self.ready))
                break
            except OSError:
                if not left:
                    raise
                await asyncio.sleep(0.1)  # the balancer before this one may be about to end

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop_metrics = stop

    async def close(self) -> None:
        """Give back everything that is held and stop what runs."""
        if self._ticker is not None:
            self._ticker.cancel()
        for task in self._checks:
            task.cancel()
        for discovery in self._discoveries.values():
            await discovery.stop()
        await self._visits.close()
        for cluster in (*self.clusters.values(), *self._retired):
            await cluster.close()
        await self._assembly.links.close()
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

    def logs_details(self, route: str) -> bool:
        """Whether each decision of a route is told in the debug log (Higress: `enableDetailLog`)."""
        settings = self.settings.get(route)
        policy = (settings.policy if settings else None) or self.config.default_policy
        return policy is None or policy.detail_log

    def drain(self, endpoint: str, *, drained: bool) -> None:
        """Give an endpoint no more requests, or some again, in each cluster that has one of this name.

        Raises KeyError for an unknown name.
        """
        having = [
            cluster
            for cluster in self.clusters.values()
            if any(member.name == endpoint for member in cluster.endpoints)
        ]
        if not having:
            raise KeyError(endpoint)
        for cluster in having:
            (cluster.health.drain if drained else cluster.health.undrain)(endpoint)

    def use_policy(self, name: str) -> None:
        """Change the policy of the routes that have none of their own, from the next request on.

        "" is the configured one, "off" each cluster's own strategy. Raises ConfigError for a name that
        cannot be used, and changes nothing then.
        """
        default = default_policy(name, self.config)
        self._policy_name = name
        self.balancer.default_policy = default
        if self._ticker is not None:
            self._aim()

    def _route(self, route: RouteConfig) -> Route:
        """Give the route as it is now; what the one before knew of the same cluster or services stays."""
        match = Match.of(hosts=route.match.hosts, paths=route.match.paths, models=route.match.models)
        policy = route.policy or self.config.default_policy
        if policy is not None and isinstance(policy.policy, ClusterMetrics):
            clusters = {name: self.clusters[name] for name in policy.policy.service_list}
            group = ServiceGroup(policy.policy, self._board(policy.policy), clusters)
            return Route(route.name, match, group)
        cluster = self.clusters[route.cluster or ""]
        before = (old for old in self.balancer.routes if old.name == route.name and old.target is cluster)
        recent = next((old.recent for old in before), None) or RecentChoices()
        return Route(route.name, match, cluster, endpoint_policy(route.policy), recent)

    def _board(self, policy: ClusterMetrics) -> ServiceBoard:
        """What is known of the services of a policy; routes that share the policy share that."""
        if (board := self._boards.get(policy)) is None:
            board = self._boards[policy] = ServiceBoard(
                policy.service_list,
                queue_size=policy.queue_size,
                sample_ttl_s=policy.sample_ttl,
                clock=self._clock,
            )
        return board

    def _aim(self) -> None:
        """Have the pages visited, as the clusters and the policies in use are now."""
        settings = {name: cluster.metrics for name, cluster in self.config.clusters.items()}
        uses = [
            (route.target, route.policy or self.balancer.default_policy)
            for route in self.balancer.routes
            if isinstance(route.target, Cluster)
        ]
        self._visits.aim(self.clusters, settings, uses)

    async def _tick(self) -> None:
        """What comes by time is told also while there are no requests, and what is over is closed."""
        while True:
            await asyncio.sleep(_TICK_S)
            for cluster in self.clusters.values():
                cluster.board.tick()
                cluster.health.tick()
            self.stats.keep(present((*self.clusters.values(), *self._retired)), self._clock())
            # What other balancers have in flight there is not waited for: it may never end.
            for cluster in [old for old in self._retired if not old.store.held]:
                self._retired.remove(cluster)
                await cluster.close()
                await self._assembly.close_unused_links((*self.clusters.values(), *self._retired))
