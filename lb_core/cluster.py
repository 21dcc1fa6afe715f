"""The live view of one cluster: who its members are and which of them may serve a request."""

from collections.abc import Callable
from fnmatch import fnmatchcase

from lb_core.errors import ModelNotFound, NoEndpoint
from lb_core.policies import Policy
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.prefix.finder import Found, PrefixFinder
from lb_core.stores.base import Store
from lb_core.types import Choice, Endpoint, Snapshot

_REMEMBERED_MODELS = 256
"""Clients choose model names, so what is remembered by them is bounded."""


class Cluster:
    """A named group of endpoints, the store that counts their requests, and the cluster's own strategy.

    `new_finder` makes what remembers prompts for a policy that asks for it.
    """

    def __init__(
        self,
        name: str,
        endpoints: tuple[Endpoint, ...],
        store: Store,
        balance: Policy,
        new_finder: Callable[[PrefixCache], PrefixFinder],
    ) -> None:
        self.name = name
        self.endpoints = endpoints
        self.store = store
        self.balance = balance
        self._new_finder = new_finder
        self._finders: dict[PrefixCache, PrefixFinder] = {}
        self._by_model: dict[str, tuple[Choice, ...]] = {}
        self._all = tuple(Choice(endpoint) for endpoint in endpoints)
        self._choosy = any(endpoint.models for endpoint in endpoints)
        self._decisions = 0

    def finder(self, policy: Policy) -> PrefixFinder | None:
        """Give what remembers prompts for the policy, None if it does not ask for that."""
        if not isinstance(policy, PrefixCache):
            return None
        if (finder := self._finders.get(policy)) is None:
            finder = self._finders[policy] = self._new_finder(policy)
        return finder

    async def close(self) -> None:
        """Give back what is held and finish what is on its way."""
        await self.store.close()
        for finder in self._finders.values():
            await finder.close()

    def snapshot(self, model: str | None, found: Found | None = None) -> Snapshot:
        """Give the endpoints that may serve `model`; None is a request that names none.

        `found` is what is remembered of the prompt.

        Raises NoEndpoint when the cluster is empty, ModelNotFound when no endpoint serves the model.
        """
        candidates = self._all if model is None or not self._choosy else self._serving(model)
        if not candidates:
            if self._all:
                raise ModelNotFound("No endpoint serves the model that was asked for.")
            raise NoEndpoint("No endpoint is available.")
        sequence = self._decisions
        self._decisions += 1
        prefix = found.among(candidates) if found else None
        return Snapshot(self.name, candidates, self.store.in_flight, sequence, prefix)

    def _serving(self, model: str) -> tuple[Choice, ...]:
        if (known := self._by_model.get(model)) is not None:
            return known
        if len(self._by_model) >= _REMEMBERED_MODELS:
            self._by_model.clear()
        serving = tuple(
            choice
            for choice in self._all
            if not choice.endpoint.models
            or any(fnmatchcase(model, pattern) for pattern in choice.endpoint.models)
        )
        self._by_model[model] = serving
        return serving
