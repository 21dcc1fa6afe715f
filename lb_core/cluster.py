"""The live view of one cluster: who its members are and which of them may serve a request."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from lb_core.engines.board import Board
from lb_core.engines.model import Observation
from lb_core.errors import ModelNotFound, NoEndpoint
from lb_core.health import Eligibility, Health
from lb_core.policies import Policy
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.prefix.finder import Found, PrefixFinder
from lb_core.recent import Pace
from lb_core.stores.base import Store
from lb_core.tasks import spawn
from lb_core.types import Choice, Endpoint, Snapshot

_REMEMBERED_MODELS = 256
"""Clients choose model names, so what is remembered by them is bounded."""
_NOTHING: Mapping[str, int] = {}
_UNSEEN: Mapping[str, Observation] = {}


@dataclass(slots=True)
class _Serving:
    """The endpoints that serve a model, and those of them that were available at `version`."""

    choices: tuple[Choice, ...]
    names: frozenset[str] | None
    """None is all."""
    version: int = -1
    available: tuple[Choice, ...] = ()
    turns: dict[str, int] = field(default_factory=dict)
    """How many decisions each route has made on them."""


class Cluster:
    """A named group of endpoints, and all that is known of them.

    `store` counts their requests, `pace` how fast they end, `health` says who may get more, `board` has
    what the engines report. `balance` is the cluster's own strategy. `new_finder` makes what remembers
    prompts for a policy that asks for it.
    """

    def __init__(
        self,
        name: str,
        endpoints: tuple[Endpoint, ...],
        *,
        store: Store,
        health: Health,
        board: Board,
        balance: Policy,
        new_finder: Callable[[PrefixCache], PrefixFinder],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.store = store
        self.health = health
        self.board = board
        self.balance = balance
        self.pace = Pace(clock=clock)
        self.endpoints: tuple[Endpoint, ...] = ()
        self._new_finder = new_finder
        self._finders: dict[PrefixCache, PrefixFinder] = {}
        self._take(endpoints)

    def members(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Take another list of endpoints; known names keep their state, requests in flight their place."""
        gone = {endpoint.name for endpoint in self.endpoints} - {endpoint.name for endpoint in endpoints}
        self._take(endpoints)
        self.health.members(endpoints)
        self.board.keep(endpoint.name for endpoint in endpoints)
        for name in gone:
            self.forget(name)

    def _take(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints
        self._all = _Serving(tuple(Choice(endpoint) for endpoint in endpoints), None)
        self._choosy = any(endpoint.models for endpoint in endpoints)
        self._by_model: dict[str, _Serving] = {}

    def finder(self, policy: Policy) -> PrefixFinder | None:
        """Give what remembers prompts for the policy, None if it does not ask for that."""
        if not isinstance(policy, PrefixCache):
            return None
        if (finder := self._finders.get(policy)) is None:
            finder = self._finders[policy] = self._new_finder(policy)
        return finder

    def keep_finders(self, policies: Collection[object]) -> None:
        """Forget the prompts that were remembered for policies other than these."""
        for policy in [policy for policy in self._finders if policy not in policies]:
            spawn(self._finders.pop(policy).close(), name=f"end of the prefixes of {self.name}")

    def forget(self, endpoint: str) -> None:
        """Its caches are gone: it has no prompt any more."""
        for finder in self._finders.values():
            finder.forget(endpoint)

    async def close(self) -> None:
        """Give back what is held and finish what is on its way."""
        await self.store.close()
        for finder in self._finders.values():
            await finder.close()

    def snapshot(
        self,
        model: str | None,
        found: Found | None = None,
        *,
        route: str | None = None,
        recent: Mapping[str, int] = _NOTHING,
        metrics: bool = False,
    ) -> tuple[Snapshot, Eligibility]:
        """Give the endpoints that may serve `model` now; None is a request that names none.

        `route` is the name of the route that decides on them, None if nobody does; `found` what is
        remembered of the prompt, `recent` how often each endpoint was chosen of late, `metrics` whether what
        the engines report is wanted. Raises NoEndpoint when none is available, ModelNotFound when none serves
        the model.
        """
        serving = self._serving(model)
        in_flight = self.store.in_flight
        eligible = self.health.eligible(in_flight, serving.names)
        candidates = _available(serving, eligible)
        if not candidates:
            if self._all.choices and not serving.choices:
                raise ModelNotFound("No endpoint serves the model that was asked for.")
            raise NoEndpoint("No endpoint is available.")
        sequence = 0
        if route is not None:
            sequence = serving.turns.get(route, 0)
            serving.turns[route] = sequence + 1
        prefix = found.among(candidates) if found else None
        observed: Mapping[str, Observation] = (
            self.board.observations(choice.endpoint.name for choice in candidates) if metrics else _UNSEEN
        )
        return Snapshot(self.name, candidates, in_flight, sequence, prefix, observed, recent), eligible

    def rest_s(self, model: str | None, *, besides: str) -> float:
        """Seconds until another endpoint than this that serves `model` takes requests; inf if none will."""
        return self.health.rest_s(besides=besides, among=self._serving(model).names)

    def _serving(self, model: str | None) -> _Serving:
        if model is None or not self._choosy:
            return self._all
        if (known := self._by_model.get(model)) is not None:
            return known
        if len(self._by_model) >= _REMEMBERED_MODELS:
            self._by_model.clear()
        choices = tuple(
            choice
            for choice in self._all.choices
            if not choice.endpoint.models
            or any(fnmatchcase(model, pattern) for pattern in choice.endpoint.models)
        )
        names = frozenset(choice.endpoint.name for choice in choices)
        known = self._by_model[model] = _Serving(choices, names)
        return known


def _available(serving: _Serving, eligible: Eligibility) -> tuple[Choice, ...]:
    """The same tuple while nothing changes and no load is virtual: stores remember what they made of it."""
    if serving.version != eligible.version:
        names = eligible.available
        serving.version = eligible.version
        serving.available = tuple(choice for choice in serving.choices if choice.endpoint.name in names)
    loads = eligible.virtual_loads
    if not loads:
        return serving.available
    return tuple(
        replace(choice, virtual_load=loads[choice.endpoint.name]) if choice.endpoint.name in loads else choice
        for choice in serving.available
    )
