"""The ledger in plain Python: what the Lua scripts are held to."""

from collections import Counter
from collections.abc import Callable

from lb_core.stores.placement import place
from lb_core.types import Decision


class Twin:
    """Owners, their leases and their ledgers. The counts are nothing but the sum of the ledgers.

    `clock` gives ms. The methods are the scripts of the same names.
    """

    def __init__(self, clock: Callable[[], int], *, lease_ms: int) -> None:
        self.ledgers: dict[str, dict[str, str]] = {}
        self.owners: dict[str, int] = {}
        self._clock = clock
        self._lease_ms = lease_ms

    @property
    def counts(self) -> Counter[str]:
        return Counter(endpoint for ledger in self.ledgers.values() for endpoint in ledger.values())

    def acquire(self, owner: str, slot: str, decision: Decision, tie: float) -> tuple[str, int]:
        """Endpoint ("" when all are full, or if it was held before) and tier."""
        if slot in self.ledgers.get(owner, {}):
            return "", 0
        placed = place(decision, self.counts, tie)
        if placed is None:
            return "", 0
        tier, choice = placed
        self._register(owner)
        self.ledgers.setdefault(owner, {})[slot] = choice.endpoint.name
        return choice.endpoint.name, tier

    def hold(self, owner: str, slots: dict[str, str], limit: int | None = None) -> list[int]:
        """How many slots were not as said or -1 if there was no room, and 1 if the owner was unknown."""
        fresh = int(owner not in self.owners)
        ledger, counts = self.ledgers.get(owner, {}), self.counts
        if limit is not None and any(
            counts[endpoint] >= limit and ledger.get(slot) != endpoint for slot, endpoint in slots.items()
        ):
            return [-1, fresh]
        self._register(owner)
        changed = sum(ledger.get(slot) != endpoint for slot, endpoint in slots.items())
        if slots:
            self.ledgers.setdefault(owner, {}).update(slots)
        return [changed, fresh]

    def release(self, owner: str, slots: list[str]) -> int:
        ledger = self.ledgers.get(owner, {})
        released = sum(ledger.pop(slot, None) is not None for slot in slots)
        self._tidy()
        return released

    def beat(self, owner: str) -> tuple[bool, int, set[str]]:
        now, known = self._clock(), owner in self.owners
        for name, expiry in self.owners.items():
            if expiry >= now + 3 * self._lease_ms:
                self.owners[name] = now + self._lease_ms
        self.owners[owner] = now + self._lease_ms
        expired = {name for name, expiry in self.owners.items() if expiry <= now}
        return known, len(self.ledgers.get(owner, {})), expired

    def reap(self, dead: str, caller: str) -> int:
        if dead != caller and self.owners.get(dead, self._clock() + 1) > self._clock():
            return 0
        self.owners.pop(dead, None)
        return len(self.ledgers.pop(dead, {}))

    def clear(self) -> None:
        self.ledgers.clear()
        self.owners.clear()

    def _register(self, owner: str) -> None:
        self.owners.setdefault(owner, self._clock() + self._lease_ms)

    def _tidy(self) -> None:
        self.ledgers = {owner: ledger for owner, ledger in self.ledgers.items() if ledger}
