"""The live view of one cluster: who its members are and which of them may serve a request."""

from fnmatch import fnmatchcase

from lb_core.errors import ModelNotFound, NoEndpoint
from lb_core.policies import Policy
from lb_core.stores.base import Store
from lb_core.types import Choice, Endpoint, Snapshot

_REMEMBERED_MODELS = 256
"""Clients choose model names, so what is remembered by them is bounded."""


class Cluster:
    """A named group of endpoints, the store that counts their requests, and the cluster's own strategy."""

    def __init__(self, name: str, endpoints: tuple[Endpoint, ...], store: Store, balance: Policy) -> None:
        self.name = name
        self.endpoints = endpoints
        self.store = store
        self.balance = balance
        self._by_model: dict[str, tuple[Choice, ...]] = {}
        self._all = tuple(Choice(endpoint) for endpoint in endpoints)
        self._choosy = any(endpoint.models for endpoint in endpoints)
        self._decisions = 0

    def snapshot(self, model: str | None) -> Snapshot:
        """Give the endpoints that may serve `model`; None is a request that names none.

        Raises NoEndpoint when the cluster is empty, ModelNotFound when no endpoint serves the model.
        """
        candidates = self._all if model is None or not self._choosy else self._serving(model)
        if not candidates:
            if self._all:
                raise ModelNotFound("No endpoint serves the model that was asked for.")
            raise NoEndpoint("No endpoint is available.")
        sequence = self._decisions
        self._decisions += 1
        return Snapshot(self.name, candidates, self.store.in_flight, sequence)

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
