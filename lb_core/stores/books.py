"""What this process holds, and what it knows of everybody's counts. No I/O."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from lb_core.types import Endpoint, Lease


class Held(NamedTuple):
    """A lease and the name of its slot in the ledger."""

    slot: str
    lease: Lease


class Books:
    """`own` counts what this process holds, `seen` everybody's slots: as last heard, corrected by own news.

    The server carries calls out in the order in which they are sent. So a count that is heard contains all
    that was answered before, and only what was given back and is not yet confirmed must be taken off it.
    """

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        """By lease id."""
        self.pending: set[str] = set()
        """Slots that the server was asked for and has not answered."""
        self.own: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._leaving: dict[str, int] = {}
        self.seen: Mapping[str, int] = MappingProxyType(self._seen)

    def add(self, slot: str, lease_id: str, cluster: str, endpoint: Endpoint, tier: int) -> Lease:
        """Hold a slot that the counts heard so far do not contain."""
        name = endpoint.name
        _change(self.own, name, 1)
        _change(self._seen, name, 1)
        lease = Lease(lease_id, cluster, endpoint, tier, self._seen[name])
        self.held[lease_id] = Held(slot, lease)
        return lease

    def remove(self, lease_id: str) -> Held | None:
        """Give it back; None if it is not held. `left` is to be called when the server knows."""
        if (held := self.held.pop(lease_id, None)) is not None:
            name = held.lease.endpoint.name
            _change(self.own, name, -1)
            _change(self._seen, name, -1)
            _change(self._leaving, name, 1)
        return held

    def move(self, lease_id: str, endpoint: Endpoint) -> Held | None:
        """Hold it elsewhere; None if it is not held."""
        if (held := self.held.get(lease_id)) is None:
            return None
        for counts in (self.own, self._seen):
            _change(counts, held.lease.endpoint.name, -1)
            _change(counts, endpoint.name, 1)
        lease = held.lease
        moved = Held(
            held.slot, Lease(lease.id, lease.cluster, endpoint, lease.tier, self._seen[endpoint.name])
        )
        self.held[lease_id] = moved
        return moved

    def left(self, names: Iterable[str]) -> None:
        """The server knows that these were given back, or will be told anew what is held."""
        for name in names:
            _change(self._leaving, name, -1)

    def hear(self, names: Iterable[str], counts: Iterable[int]) -> None:
        """The server says that so many are in flight at these endpoints."""
        seen, leaving = self._seen, self._leaving
        for name, count in zip(names, counts, strict=True):
            real = count - leaving.get(name, 0) if leaving else count
            if real > 0:
                seen[name] = real
            else:
                seen.pop(name, None)

    def hear_all(self, counts: Mapping[str, int]) -> None:
        """The server says what is in flight everywhere."""
        for name in self._seen.keys() - counts.keys():
            del self._seen[name]
        self.hear(counts.keys(), counts.values())

    def alone(self) -> None:
        """Nothing is known of others: what this process holds is all."""
        self._leaving.clear()
        self._seen.clear()
        self._seen.update(self.own)

    def clear(self) -> None:
        """Hold nothing."""
        for counts in (self.held, self.own, self._seen, self._leaving):
            counts.clear()


def _change(counts: dict[str, int], name: str, by: int) -> None:
    count = counts.get(name, 0) + by
    if count > 0:
        counts[name] = count
    else:
        counts.pop(name, None)
