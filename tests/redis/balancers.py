"""Whole balancers on a store of the test's, without proxy or pages of their own."""

import random
import time

from lb_core.balancer import Balancer
from lb_core.cluster import Cluster
from lb_core.engines.board import Board
from lb_core.health import Health, HealthConfig
from lb_core.policies import Policy
from lb_core.prefix.base import PrefixIndex
from lb_core.prefix.finder import PrefixFinder
from lb_core.prefix.memory import MemoryPrefixIndex
from lb_core.routes import Match, Route
from lb_core.stats import Stats
from lb_core.stores.base import Store
from lb_core.types import Endpoint


def balancer_over(
    store: Store,
    members: tuple[Endpoint, ...],
    policy: Policy,
    *,
    board: Board | None = None,
    index: PrefixIndex | None = None,
) -> Balancer:
    """One route that takes everything to one cluster of these members."""
    cluster = Cluster(
        "c",
        members,
        store=store,
        health=Health(HealthConfig(), members, clock=time.monotonic, dice=random.random),
        board=board or Board(clock=time.monotonic),
        balance=policy,
        new_finder=lambda _: PrefixFinder("c", index or MemoryPrefixIndex()),
        clock=time.monotonic,
    )
    route = Route("r", Match(), cluster, policy)
    return Balancer((route,), default_policy=None, stats=Stats(), clock=time.monotonic)
