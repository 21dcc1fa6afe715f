"""What a store promises. `tests/core/test_store_contract.py` holds every store to it."""

from collections.abc import Mapping
from typing import Protocol

from lb_core.types import Decision, Endpoint, Lease


class Store(Protocol):
    """The in-flight slots of one cluster.

    A slot is taken under an id, given back once, and comes back by itself when the process that
    holds it dies. A count is the number of slots, so it can be neither wrong nor negative.
    """

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Slots held by endpoint name, over all balancers, as last heard; a live, read-only view."""
        ...

    @property
    def held(self) -> int:
        """How many slots this process holds or is asking for."""
        ...

    async def acquire(self, lease_id: str, decision: Decision, tie: float) -> Lease:
        """Take a slot by the rule of `placement.place`, atomically over all balancers.

        Raises Saturated when every endpoint of every tier is at its limit; nothing is held then.
        If the caller is cancelled meanwhile, nothing is held either. Asking again with the same id
        gives the same lease.
        """
        ...

    def release(self, lease_id: str) -> bool:
        """Give the slot back; False if it is not held, so a second call does nothing. Never blocks."""
        ...

    async def move(self, lease_id: str, endpoint: Endpoint, max_in_flight: int | None = None) -> bool:
        """Hold the slot at another endpoint from now on, in one step; False if it is not held.

        Raises Saturated when the endpoint is at its limit or at `max_in_flight`, the policy's; the slot stays
        where it is.
        """
        ...

    async def close(self) -> None:
        """Give back everything that this process holds. What is taken afterwards is counted here alone."""
        ...
