"""The store of a balancer that is alone."""

from collections.abc import Mapping
from types import MappingProxyType

from lb_core.errors import Saturated
from lb_core.stores.placement import FULL, limit_of, place
from lb_core.types import Decision, Endpoint, Lease


class MemoryStore:
    """Slots held in this process. Nothing here awaits, so a burst cannot land on one endpoint."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._leases: dict[str, Lease] = {}
        self._counts: dict[str, int] = {}
        self._view = MappingProxyType(self._counts)

    @property
    def in_flight(self) -> Mapping[str, int]:
        """See `Store`; an endpoint without requests is absent."""
        return self._view

    @property
    def held(self) -> int:
        """See `Store`."""
        return len(self._leases)

    async def acquire(self, lease_id: str, decision: Decision, tie: float) -> Lease:
        """See `Store`."""
        if (held := self._leases.get(lease_id)) is not None:
            return held
        placed = place(decision, self._counts, tie)
        if placed is None:
            raise Saturated(FULL)
        tier, choice = placed
        lease = Lease(lease_id, self._cluster, choice.endpoint, tier, self._add(choice.endpoint.name))
        self._leases[lease_id] = lease
        return lease

    def release(self, lease_id: str) -> bool:
        """See `Store`."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return False
        self._take(lease.endpoint.name)
        return True

    async def move(self, lease_id: str, endpoint: Endpoint, max_in_flight: int | None = None) -> bool:
        """See `Store`."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return False
        limit = limit_of(endpoint, max_in_flight)
        if lease.endpoint != endpoint and limit is not None and self._counts.get(endpoint.name, 0) >= limit:
            raise Saturated(FULL)
        self._take(lease.endpoint.name)
        count = self._add(endpoint.name)
        self._leases[lease_id] = Lease(lease_id, self._cluster, endpoint, lease.tier, count)
        return True

    async def close(self) -> None:
        """See `Store`."""
        self._leases.clear()
        self._counts.clear()

    def _add(self, name: str) -> int:
        count = self._counts.get(name, 0) + 1
        self._counts[name] = count
        return count

    def _take(self, name: str) -> None:
        count = self._counts[name] - 1
        if count:
            self._counts[name] = count
        else:
            del self._counts[name]
