"""One request's life in two calls: `route` places it, `finish` takes it back."""

import itertools
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from lb_core.cluster import Cluster
from lb_core.engines.reservation import Reservation
from lb_core.errors import ModelNotFound, NoEndpoint, NoRoute, RouteError, Saturated
from lb_core.health import IGNORED, Attempt, Verdict, Work, judge, rest_seconds
from lb_core.policies import Policy
from lb_core.request import LLMRequest
from lb_core.retry import joined, remaining
from lb_core.routes import Route, ServiceGroup
from lb_core.services import ServiceBoard
from lb_core.stats import Stats
from lb_core.stores.patience import OneWait
from lb_core.stores.placement import place
from lb_core.types import Endpoint, Outcome, Placement, Request

_ADMISSIONS = 3
"""How often a request is placed anew when the probe that it would be turns out to be under way elsewhere."""

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, fall as evenly as a sequence can (Weyl), so ties are broken evenly."""


@dataclass(slots=True)
class _Home:
    """What the balancer keeps of a request while it is placed."""

    cluster: Cluster
    attempt: Attempt
    endpoints: tuple[Endpoint, ...]
    """Of the cluster when the decision was made; a reload may bring others."""
    board: ServiceBoard | None = None
    tried: set[str] = field(default_factory=set)
    """Endpoints that are not to be tried again."""


class Balancer:
    """Places requests on the endpoints of the first route that matches, and takes them back.

    `routes` and `default_policy`, which serves the routes that have none of their own, may be set at any
    time: requests in flight finish where they were placed. A default of None is the cluster's own strategy.
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
        self._homes: dict[str, _Home] = {}

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
        target = route.target
        try:
            with OneWait():
                if isinstance(target, Cluster):
                    policy = route.policy or self.default_policy or target.balance
                    return await self._place(request, started, route, target, policy)
                return await self._place_among(request, started, route, target)
        except Saturated as error:
            full = (target,) if isinstance(target, Cluster) else tuple(target.clusters.values())
            for cluster in full:
                cluster.pace.refused()
            error.retry_after_s = min(cluster.pace.wait_s() for cluster in full)
            raise

    def retry_after_s(self, placement: Placement, said: str | None) -> int:
        """Seconds after which a client may come back whose endpoint has no room: when the first one has.

        `said` is the Retry-After of that endpoint, as it came.
        """
        home = self._homes.get(placement.request.id)
        rest_s = rest_seconds(said, unix_time=time.time())
        if home is not None:
            others_s = home.cluster.rest_s(placement.request.model, besides=placement.endpoint.name)
            rest_s = min(rest_s, others_s)
        return max(math.ceil(rest_s), 1)

    def connected(self, placement: Placement) -> None:
        """The connection to the endpoint stands."""
        if (home := self._homes.get(placement.request.id)) is not None:
            home.attempt.connected()

    def content(self, placement: Placement) -> None:
        """The first content of a good answer came: the endpoint is well, however long the answer takes."""
        if (home := self._homes.get(placement.request.id)) is not None:
            home.attempt.content()

    def progressed(self, placement: Placement) -> None:
        """More of its stream came; said now and then, not for each event."""
        if (home := self._homes.get(placement.request.id)) is not None:
            home.attempt.progressed()

    async def retry(
        self, placement: Placement, outcome: Outcome, *, or_same: bool = False
    ) -> Placement | None:
        """Place the request at another endpoint, in the order of its decision; the slot is moved in one step.

        `outcome` is that of the attempt which failed. `or_same` tries the same endpoint if there is no other.
        None if there is none, or if the request was finished meanwhile. `finish` follows once in any case,
        with the placement that was given last.
        """
        home = self._homes.get(placement.request.id)
        if home is None:
            return None
        home.attempt.ended(_verdict(outcome))
        home.tried.add(placement.endpoint.name)
        if outcome.status is not None:
            rest_s = home.cluster.rest_s(placement.request.model, besides=placement.endpoint.name)
            if 0 < rest_s < math.inf:  # one that rests would say the same
                return None
        with OneWait():
            return await self._move(placement, home, or_same)

    async def _move(self, placement: Placement, home: _Home, or_same: bool) -> Placement | None:
        cluster, here = home.cluster, placement.endpoint.name
        while True:
            try:
                snapshot, eligible = cluster.snapshot(placement.request.model)
            except RouteError:
                return None
            decision = placement.decision
            if cluster.endpoints is not home.endpoints:
                decision = joined(decision, home.endpoints, snapshot)
            rest = remaining(decision, home.tried, snapshot)
            counts = cluster.store.in_flight
            others = {**counts, here: counts.get(here, 1) - 1}  # its own slot takes nobody's place
            placed = place(rest, others, placement.request.tie)
            if placed is None:
                if not or_same:
                    return None
                or_same = False
                home.tried.discard(here)
                continue
            tier, endpoint = placed[0], placed[1].endpoint
            home.tried.add(endpoint.name)
            attempt = await cluster.health.admit(endpoint.name, eligible, _work(placement.request))
            if attempt is None:
                continue
            home.attempt = attempt
            try:
                moved = await cluster.store.move(placement.lease.id, endpoint, rest.max_in_flight)
            except Saturated:  # other balancers have filled it
                attempt.ended(IGNORED)
                continue
            if moved and placement.request.id in self._homes:
                break
            attempt.ended(IGNORED)
            return None
        cluster.board.finished(placement.endpoint.name, placement.lease.id)
        cluster.board.placed(endpoint.name, placement.lease.id)
        if placement.note is not None:
            placement.note(endpoint.name)
        count = cluster.store.in_flight.get(endpoint.name, 1)
        lease = replace(placement.lease, endpoint=endpoint, tier=tier, in_flight=count)
        home.endpoints = cluster.endpoints
        return replace(placement, decision=decision, lease=lease)

    def finish(self, placement: Placement, outcome: Outcome) -> None:
        """Give the slot back and learn from what became of the request. A second call does nothing."""
        home = self._homes.pop(placement.request.id, None)
        if home is None:
            return
        home.cluster.store.release(placement.lease.id)
        home.cluster.pace.finished()
        home.cluster.board.finished(placement.endpoint.name, placement.lease.id)
        home.attempt.ended(_verdict(outcome))
        if home.board is not None:
            home.board.finished(home.cluster.name, placement.request.id, outcome)
        self._stats.finished(placement, outcome)

    async def _place(
        self, request: Request, started: float, route: Route, cluster: Cluster, policy: Policy
    ) -> Placement:
        finder = cluster.finder(policy)
        found = await finder.find(request) if finder else None
        wants_metrics = "metrics" in policy.signals
        with Reservation(cluster.board, route.recent, request.id) as reservation:
            for _ in range(_ADMISSIONS):
                # Nothing is awaited from here until the request is counted.
                snapshot, eligible = cluster.snapshot(
                    request.model,
                    found,
                    route=route.name,
                    recent=route.recent.counts,
                    metrics=wants_metrics,
                )
                decision = policy.decide(request, snapshot)
                if not decision.tiers:
                    raise Saturated("No endpoint has room for a request that may be refused.")
                if wants_metrics and (likely := place(decision, snapshot.in_flight, request.tie)):
                    reservation.move(likely[1].endpoint.name)
                lease = await cluster.store.acquire(request.id, decision, request.tie)
                reservation.move(lease.endpoint.name)
                try:
                    attempt = await cluster.health.admit(lease.endpoint.name, eligible, _work(request))
                except BaseException:
                    cluster.store.release(lease.id)
                    raise
                if attempt is not None:
                    break
                cluster.store.release(lease.id)
                reservation.move(None)
            else:
                raise NoEndpoint("No endpoint is available.")
        self._homes[request.id] = _Home(cluster, attempt, cluster.endpoints)
        in_flight = dict(cluster.store.in_flight)
        in_flight[lease.endpoint.name] = lease.in_flight - 1
        note = partial(finder.record, found) if finder and found else None
        if note is not None:
            note(lease.endpoint.name)
        return Placement(
            request,
            route.name,
            cluster.name,
            decision,
            lease,
            in_flight,
            started,
            metrics=snapshot.metrics,
            prefix=snapshot.prefix,
            out=eligible.out,
            panic=eligible.panic,
            note=note,
        )

    async def _place_among(
        self, request: Request, started: float, route: Route, group: ServiceGroup
    ) -> Placement:
        """Place it in the best cluster that has room for it."""
        load = {name: sum(cluster.store.in_flight.values()) for name, cluster in group.clusters.items()}
        ranked = group.policy.choose(request, group.board.view(load))
        unplaced: list[RouteError] = [NoEndpoint("No endpoint is available.")]
        for choice in ranked.choices:
            cluster = group.clusters[choice.name]
            try:
                with group.board.placing(choice.name, request.id):
                    placement = await self._place(request, started, route, cluster, cluster.balance)
            except (Saturated, NoEndpoint, ModelNotFound) as error:
                unplaced.append(error)
            else:
                self._homes[request.id].board = group.board
                return replace(placement, services=ranked, service_header=group.policy.cluster_header)
        # One that is full has room again, sooner than one without endpoints has any.
        raise next((each for each in unplaced if isinstance(each, Saturated)), unplaced[-1])

    def _match(self, request: Request) -> Route:
        for route in self.routes:
            if route.match.takes(request):
                return route
        raise NoRoute("No route matches this host, path and model.")


def _work(request: Request) -> Work:
    if request.llm is None or not request.llm.known:
        return Work.OTHER
    return Work.STREAM if request.llm.stream else Work.ANSWER


def _verdict(outcome: Outcome) -> Verdict:
    return judge(
        outcome,
        unix_time=time.time(),
        connected=outcome.connected,
        retry_after=outcome.retry_after,
        error_code=outcome.error_code,
    )
