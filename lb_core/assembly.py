"""One cluster's working parts, put together from its configuration."""

import logging
import random
import secrets
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from weakref import WeakKeyDictionary

from lb_core.cluster import Cluster
from lb_core.config import ClusterConfig, Config, MetricsConfig, PolicyConfig, RedisConfig, load_endpoints
from lb_core.discovery import Discovery, EndpointList, EndpointsFile
from lb_core.dns import resolve
from lb_core.engines.board import Board
from lb_core.engines.watch import Change as EngineChange
from lb_core.errors import ConfigError, Problem
from lb_core.health import Alone, Change, Checker, Fleet, Health
from lb_core.policies import POLICIES
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.prefix.base import PrefixIndex
from lb_core.prefix.finder import PrefixFinder
from lb_core.prefix.memory import MemoryPrefixIndex
from lb_core.prefix.redis import RedisPrefixIndex
from lb_core.stats import Stats
from lb_core.stores.base import Store
from lb_core.stores.fleet import RedisFleet
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Link, Links
from lb_core.stores.memory import MemoryStore
from lb_core.stores.redis import RedisStore
from lb_core.types import Endpoint

logger = logging.getLogger(__name__)

_ALARMING = frozenset({"ejected", "panic", "stalled", "unhealthy"})


class Assembly:
    """Builds clusters. `links` are the Redis connections, `tls` is how checks trust endpoints."""

    def __init__(self, stats: Stats, clock: Callable[[], float]) -> None:
        self.links = Links()
        self.tls: ssl.SSLContext | None = None
        self._stats = stats
        self._clock = clock
        self._link_of: WeakKeyDictionary[Cluster, Link | None] = WeakKeyDictionary()
        self._fleet_of: WeakKeyDictionary[Cluster, Fleet] = WeakKeyDictionary()

    def cluster(self, config: ClusterConfig, whole: Config, old: Cluster | None) -> Cluster:
        """Give the old cluster if it can go on, else a new one. Raises ConfigError."""
        redis = next((policy.redis for policy in _policies_on(config.name, whole) if policy.redis), None)
        link = self._link(config.name, redis, whole.source)
        if old is not None and self._link_of[old] is link:
            return old
        cluster = self._new(config, link, old)
        self._link_of[cluster] = link
        return cluster

    async def close_unused_links(self, clusters: Iterable[Cluster]) -> None:
        """Close the connections that none of these clusters uses."""
        await self.links.keep({link for cluster in clusters if (link := self._link_of[cluster]) is not None})

    def set_timeouts(self, clusters: Mapping[str, Cluster], whole: Config) -> None:
        """Give each connection the shortest time-out of the policies that share it."""
        shortest: dict[Link, int] = {}
        for name, cluster in clusters.items():
            if (link := self._link_of[cluster]) is not None:
                for redis in [policy.redis for policy in _policies_on(name, whole) if policy.redis]:
                    shortest[link] = min(redis.timeout_ms, shortest.get(link, redis.timeout_ms))
        for link, timeout_ms in shortest.items():
            link.timeout_ms = timeout_ms

    def update(self, cluster: Cluster, config: ClusterConfig, endpoints: tuple[Endpoint, ...]) -> None:
        """Bring a cluster up to its configuration and to the endpoints that it has now."""
        health, board = cluster.health, cluster.board
        health.fleet = self._fleet_of[cluster]
        board.on_change = partial(_engine_changed, cluster)
        board.on_step = health.stepped
        board.on_page = health.page
        if cluster.endpoints != endpoints:
            cluster.members(endpoints)
        if cluster.health.config != config.health:
            cluster.health.configure(config.health)
        cluster.board.stale_after_s = (config.metrics or MetricsConfig()).stale_after_s
        cluster.balance = POLICIES[config.balance]()

    def _new(self, config: ClusterConfig, link: Link | None, old: Cluster | None) -> Cluster:
        """Another store for the counts; what is known of the endpoints stays."""
        name = config.name

        def new_finder(policy: PrefixCache) -> PrefixFinder:
            index: PrefixIndex
            if link is not None:
                index = RedisPrefixIndex(link, name, ttl_s=policy.redis_key_ttl_s)
            else:
                ttl_s, most = policy.redis_key_ttl_s, policy.max_prefix_entries
                index = MemoryPrefixIndex(ttl_s=ttl_s, max_entries=most, clock=self._clock)
            return PrefixFinder(name, index, tenant_header=policy.tenant_header, secret=policy.secret)

        store: Store = MemoryStore(name) if link is None else RedisStore(name, link)
        health = Health(
            config.health,
            config.endpoints,
            clock=self._clock,
            dice=random.random,
            on_change=partial(self._health_changed, name),
        )
        cluster = Cluster(
            name,
            config.endpoints if old is None else old.endpoints,
            store=store,
            health=health if old is None else old.health,
            board=Board(clock=self._clock) if old is None else old.board,
            balance=POLICIES[config.balance](),
            new_finder=new_finder,
            clock=self._clock,
        )
        self._fleet_of[cluster] = Alone() if link is None else RedisFleet(link, name, secrets.token_hex(8))
        return cluster

    def checker(self, cluster: Cluster) -> Checker | None:
        """The active checks of a cluster, None if it has none."""
        checks = cluster.health.config.checks
        if checks is None:
            return None
        return Checker(
            checks, lambda: cluster.endpoints, cluster.health.checked, dice=random.random, tls=self.tls
        )

    def discovery(
        self,
        config: ClusterConfig,
        hosts: Mapping[str, str],
        on_members: Callable[[str, tuple[Endpoint, ...]], None],
        after: Discovery | None,
    ) -> Discovery | None:
        """What follows the endpoints that the configuration does not name; None if it names all."""
        if not config.dns and config.endpoints_file is None:
            return None
        file = None
        if config.endpoints_file is not None:
            file = EndpointsFile(
                config.endpoints_file,
                lambda path: EndpointList(load_endpoints(path, config.name, hosts=hosts)),
            )

        async def resolve_named(host: str) -> tuple[str, ...]:
            return await resolve(hosts.get(host, host))

        listed = EndpointList(config.endpoints, config.dns)
        return Discovery(config.name, listed, on_members, file=file, after=after, resolve=resolve_named)

    def _link(self, cluster: str, redis: RedisConfig | None, source: str) -> Link | None:
        if redis is None:
            return None
        try:
            return self.links.to(redis, key(cluster, COUNTS))
        except ValueError as error:
            raise ConfigError(source, (Problem("redis", str(error)),)) from error

    def _health_changed(self, cluster: str, change: Change) -> None:
        self._stats.health_changed(cluster, change.endpoint or "", change.after)
        if change.after in _ALARMING:
            level = logging.WARNING
        else:
            # Engines with a full queue rest all the time.
            level = logging.DEBUG if "resting" in (change.before, change.after) else logging.INFO
        logger.log(
            level,
            "ai-lb: %s is %s, was %s%s",
            change.endpoint or f"cluster {cluster}",
            change.after,
            change.before,
            _why(change),
        )


def _why(change: Change) -> str:
    """The reason and its detail, without what the state says already."""
    reason = change.reason.replace("_", " ")
    said = "" if reason == change.after.replace("-", " ") else f": {reason}"
    return f"{said} ({change.detail})" if change.detail else said


def _engine_changed(cluster: Cluster, endpoint: str, change: EngineChange) -> None:
    """What an engine's own page says about its health."""
    match change:
        case EngineChange.ASLEEP | EngineChange.AWAKE:
            cluster.health.sleeping(endpoint, change is EngineChange.ASLEEP)
        case EngineChange.STALLED | EngineChange.MOVING:
            cluster.health.stalled(endpoint, change is EngineChange.STALLED)
        case EngineChange.RESTARTED:
            cluster.health.restarted(endpoint)
    if change in (EngineChange.ASLEEP, EngineChange.RESTARTED):
        cluster.forget(endpoint)


def _policies_on(cluster: str, config: Config) -> Iterator[PolicyConfig]:
    for route in config.routes:
        policy = route.policy or config.default_policy
        if policy is None:
            continue
        if isinstance(policy.policy, ClusterMetrics):
            if cluster in policy.policy.service_list:
                yield policy
        elif route.cluster == cluster:
            yield policy
