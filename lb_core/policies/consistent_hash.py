"""The same endpoint for the same session."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from lb_core.drawing import hash64, mix64
from lb_core.types import Choice, Decision, Request, Snapshot, Tier

_RANKED = 4
"""How many endpoints are tried in the session's own order before the rest count as equals."""


@dataclass(frozen=True, slots=True)
class ConsistentHash:
    """Rendezvous hashing of the session hint: each session has its own order of preference.

    When an endpoint goes, only its sessions move; when one comes, it takes its share from all. A
    request without a session hint goes to the endpoint with the fewest requests in flight.
    Weights: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables" (2005).
    """

    name: ClassVar[str] = "consistent_hash"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """The session's endpoint, then its next ones."""
        if request.session is None:
            return Decision(self.name, (Tier(snapshot.candidates, "no_session"),))
        key = hash64(request.session)
        ranked = sorted(snapshot.candidates, key=lambda choice: _cost(key, choice))
        tiers = [
            Tier((choice,), "session" if rank == 0 else "overflow")
            for rank, choice in enumerate(ranked[:_RANKED])
        ]
        if len(ranked) > _RANKED:
            tiers.append(Tier(tuple(ranked[_RANKED:]), "overflow"))
        return Decision(self.name, tuple(tiers))


def _cost(key: int, choice: Choice) -> float:
    """Exponentially distributed with the rate of the weight: the lowest of all wins in its proportion."""
    drawn = (mix64(key ^ _name_hash(choice.endpoint.name)) + 1) / (1 << 64)
    return -math.log(drawn) / choice.endpoint.weight


@lru_cache(maxsize=4096)
def _name_hash(name: str) -> int:
    return hash64(name)
