"""One request's life in two calls: `route` places it, `finish` takes it back."""

import itertools
import math
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import partial
from typing import Self

from lb_core.cluster import Cluster
from lb_core.errors import NoRoute
from lb_core.policies import Policy
from lb_core.request import LLMRequest
from lb_core.stats import Stats
from lb_core.types import Outcome, Placement, Request

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, fall as evenly as a sequence can (Weyl), so ties are broken evenly."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests a route takes. A pattern that is None takes all."""

    hosts: re.Pattern[str] | None = None
    paths: re.Pattern[str] | None = None
    models: re.Pattern[str] | None = None

    @classmethod
    def of(cls, *, hosts: Iterable[str] = (), paths: Iterable[str] = (), models: Iterable[str] = ()) -> Self:
        """Compile lists of globs; an empty list takes all. Host names are matched in lower case."""
        return cls(_any_of(host.lower() for host in hosts), _any_of(paths), _any_of(models))

    def takes(self, request: Request) -> bool:
        """Tell if all three agree; a request without a model is not taken by a list of models."""
        return (
            (self.hosts is None or self.hosts.match(request.host.lower()) is not None)
            and (self.paths is None or self.paths.match(request.path) is not None)
            and (self.models is None or self.models.match(request.model or "") is not None)
        )


def _any_of(globs: Iterable[str]) -> re.Pattern[str] | None:
    patterns = [translate(glob) for glob in globs]
    return re.compile("|".join(patterns)) if patterns else None


@dataclass(frozen=True, slots=True)
class Route:
    """A match with its cluster. `policy` None is the default policy."""

    name: str
    match: Match
    cluster: Cluster
    policy: Policy | None = None


class Balancer:
    """Places requests on the endpoints of the first route that matches, and takes them back.

    `default_policy` serves the routes that have none of their own; None is the cluster's own strategy.
    It may be set at any time: requests in flight finish where they were placed.
    """

    def __init__(
        self,
        routes: tuple[Route, ...],
        *,
        default_policy: Policy | None,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        self.routes = routes
        self.default_policy = default_policy
        self.clock = clock
        self._stats = stats
        self._instance = secrets.token_hex(4)
        self._numbers = itertools.count()
        self._clusters = {route.cluster.name: route.cluster for route in routes}

    def request(
        self, *, host: str, path: str, headers: Mapping[str, str], session: str | None, llm: LLMRequest | None
    ) -> Request:
        """Number a request that came in. `path` is without the query."""
        number = next(self._numbers)
        tie = number * _GOLDEN % 1
        return Request(f"{self._instance}-{number}", tie, host, path, headers, session, llm)

    async def route(self, request: Request, *, started: float) -> Placement:
        """Choose an endpoint and take a slot at it; `finish` must follow exactly once.

        Raises a RouteError when it cannot be placed; nothing is held then.
        """
        route = self._match(request)
        cluster = route.cluster
        policy = route.policy or self.default_policy or cluster.balance
        finder = cluster.finder(policy)
        found = await finder.find(request) if finder else None
        # Nothing is awaited from here until the store has placed the request.
        snapshot = cluster.snapshot(request.model, found)
        decision = policy.decide(request, snapshot)
        lease = await cluster.store.acquire(request.id, decision, request.tie)
        in_flight = dict(cluster.store.in_flight)
        in_flight[lease.endpoint.name] = lease.in_flight - 1
        note = partial(finder.record, found) if finder and found else None
        placement = Placement(request, route.name, cluster.name, decision, lease, in_flight, started, note)
        if note is not None:
            note(lease.endpoint.name)
        return placement

    def finish(self, placement: Placement, outcome: Outcome) -> None:
        """Give the slot back and learn from what became of the request. A second call does nothing."""
        cluster = self._clusters[placement.cluster]
        if cluster.store.release(placement.lease.id):
            self._stats.finished(placement, outcome)

    def _match(self, request: Request) -> Route:
        for route in self.routes:
            if route.match.takes(request):
                return route
        raise NoRoute("No route matches this host, path and model.")
