"""The ledger of one cluster in Redis as one owner calls it: keys, arguments and replies of the scripts."""

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from lb_core.stores.ballot import Ballot
from lb_core.stores.link import Link
from lb_core.stores.scripts import ACQUIRE, BEAT, FSCK, HOLD, REAP, RELEASE
from lb_core.stores.wire import Reply

CHUNK = 500
"""Slots in one call: one over 10,000 would hold the server for 50 ms."""

COUNTS, LEDGER, OWNERS, FSCK_CLAIM = "s", "L:", "i", "f"


def key(cluster: str, kind: str) -> str:
    """A key of a cluster. The hash tag puts all of them on one master."""
    return f"{{ai_lb:{cluster}}}:{kind}"


class Taken(NamedTuple):
    """The answer to acquire. An empty `endpoint` says that all that were asked for are full."""

    endpoint: str
    tier: int
    fresh: bool
    """The server did not know this owner: it has lost what was told before, or this is the beginning."""
    counts: list[int]


class Told(NamedTuple):
    """The answer to hold: how many slots were not known as such; there was no room; the owner was unknown."""

    changed: int
    full: bool
    fresh: bool


class Beat(NamedTuple):
    """The answer to a heartbeat."""

    known: bool
    slots: int
    expired: list[str]


class RemoteLedger:
    """Every method may raise ServerAway (outcome unknown) or Refused (an error reply), see `link`."""

    def __init__(self, cluster: str, owner: str, link: Link, *, lease_ms: int) -> None:
        self._link = link
        self._owner = owner
        self._lease_ms = lease_ms
        self._cluster = cluster
        self._counts = key(cluster, COUNTS)
        self._owners = key(cluster, OWNERS)
        self._claim = key(cluster, FSCK_CLAIM)
        self._own = self._ledger(owner)

    async def acquire(self, slot: str, tie: float, ballot: Ballot) -> Taken:
        """Take a slot, whose name was never used before."""
        keys = (self._counts, self._own, self._owners)
        reply = await self._link.run(
            ACQUIRE, keys, self._owner, slot, self._lease_ms, repr(tie), *ballot.arguments
        )
        endpoint, tier, fresh, counts = reply
        return Taken(endpoint.decode(), tier, bool(fresh), [int(count or 0) for count in counts])

    async def hold(self, slots: Iterable[tuple[str, str]], *, limit: int | None = None) -> Told:
        """Say that these slots are held at these endpoints.

        With a limit it is one slot, and `full` says that so many are at the endpoint and nothing was done.
        """
        keys = (self._counts, self._own, self._owners)
        pairs = [text for pair in slots for text in pair]
        changed, fresh = await self._link.run(
            HOLD, keys, self._owner, self._lease_ms, "" if limit is None else limit, *pairs
        )
        return Told(max(changed, 0), changed < 0, bool(fresh))

    async def release(self, slots: list[str]) -> int:
        """Give slots back; gives how many were held."""
        released: int = await self._link.run(RELEASE, (self._counts, self._own), *slots)
        return released

    def send_release(self, slots: list[str]) -> asyncio.Future[Reply]:
        """As `release`, without waiting; it is not repeated when the server has lost the script."""
        return self._link.send("EVALSHA", RELEASE.sha, 2, self._counts, self._own, *slots)

    async def beat(self) -> Beat:
        """Renew the lease."""
        keys = (self._owners, self._own, self._counts)
        known, slots, expired = await self._link.run(BEAT, keys, self._owner, self._lease_ms)
        return Beat(bool(known), slots, [owner.decode() for owner in expired])

    async def reap(self, owner: str) -> int:
        """Give back what an owner held whose lease ran out, or what we hold; gives how many slots."""
        keys = (self._owners, self._counts, self._ledger(owner))
        total, left = 0, 1
        while left:
            taken, left = await self._link.run(REAP, keys, owner, self._owner, CHUNK)
            total += taken
        return total

    async def may_check(self, every_ms: int) -> bool:
        """True for one owner in so many ms."""
        return await self._link.call("SET", self._claim, self._owner, "NX", "PX", every_ms) is not None

    async def fsck(self) -> int | None:
        """Correct the counts; gives how many were wrong, None when owners came and went meanwhile."""
        owners = [owner.decode() for owner in await self._link.call("ZRANGE", self._owners, 0, -1)]
        keys = (self._counts, self._owners, *(self._ledger(owner) for owner in owners))
        wrong: int = await self._link.run(FSCK, keys, *owners)
        return None if wrong < 0 else wrong

    async def counts(self) -> dict[str, int]:
        """Everybody's slots by endpoint."""
        reply = await self._link.call("ZRANGE", self._counts, 0, -1, "WITHSCORES")
        return {name.decode(): int(score) for name, score in zip(reply[::2], reply[1::2], strict=True)}

    async def slots(self) -> list[str]:
        """What stands in our own ledger."""
        return [slot.decode() for slot in await self._link.call("HKEYS", self._own)]

    async def wrong_key(self) -> str | None:
        """Which of our keys has a type that is not ours, if any."""
        for name, kind in ((self._counts, b"zset"), (self._own, b"hash"), (self._owners, b"zset")):
            if await self._link.call("TYPE", name) not in {kind, b"none"}:
                return name
        return None

    def _ledger(self, owner: str) -> str:
        return key(self._cluster, LEDGER + owner)
