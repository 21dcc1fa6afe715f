"""The store that balancers share: an owned ledger in Redis.

Every process is an owner with a lease of its own, renewed by a heartbeat. A slot stands in its owner's
ledger and a count is the sum over the ledgers, so what a dead process held comes back when its lease runs
out. Nothing that the server says or fails to say reaches a client: without it this process counts alone,
and on its return it tells the ledger what it holds.
"""

import asyncio
import itertools
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping

from lb_core.errors import Saturated
from lb_core.stores.ballot import Ballot, Ballots
from lb_core.stores.books import Books
from lb_core.stores.ledger import COUNTS, RemoteLedger, Taken, key
from lb_core.stores.link import Link, Links
from lb_core.stores.placement import FULL, limit_of, place
from lb_core.stores.server import RedisSettings
from lb_core.stores.upkeep import StoreStats, Upkeep
from lb_core.stores.wire import Refused, Reply, ServerAway
from lb_core.tasks import spawn
from lb_core.types import Decision, Endpoint, Lease

BEAT_S = 1.0
LEASE_S = 5.0
FSCK_S = 60.0
_FLUSH_S = 0.001
"""Releases that come within this time go out together."""


class RedisStore:
    """See `base.Store`. Built anywhere; belongs to the event loop in which it is first used."""

    def __init__(
        self,
        cluster: str,
        link: Link,
        *,
        owner: str | None = None,
        beat_s: float = BEAT_S,
        lease_s: float = LEASE_S,
        fsck_s: float = FSCK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = StoreStats()
        self.owner = owner or f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
        self._cluster = cluster
        self._link = link
        self._books = Books()
        self._ballots = Ballots(self._books.seen, clock)
        self._ledger = RemoteLedger(cluster, self.owner, link, lease_ms=int(lease_s * 1000))
        self._upkeep = Upkeep(
            cluster,
            self._ledger,
            link,
            self._books,
            self.stats,
            self._flush,
            beat_s=beat_s,
            fsck_s=fsck_s,
            clock=clock,
        )
        self._numbers = itertools.count()
        self._ended: list[tuple[str, str | None]] = []
        self._flush_due: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def at(cls, settings: RedisSettings, cluster: str, links: Links) -> "RedisStore":
        """The store of a cluster on a server. Raises ValueError when its URL cannot be used."""
        return cls(cluster, links.to(settings, key(cluster, COUNTS)))

    @property
    def in_flight(self) -> Mapping[str, int]:
        """See `Store`; an endpoint without requests is absent."""
        return self._books.seen

    @property
    def held(self) -> int:
        """See `Store`."""
        return len(self._books.held) + len(self._books.pending)

    def start(self) -> None:
        """Begin to connect and to keep the lease; does nothing the second time, nor when it is closed.

        `acquire` does it too.
        """
        if self._task is None and not self._closed:
            self._link.watch(self._upkeep.link_changed)
            if self._link.up:
                self._upkeep.link_changed(up=True)
            self._link.start()
            self._task = spawn(self._upkeep.run(), name=f"ledger of {self._cluster}")

    async def acquire(self, lease_id: str, decision: Decision, tie: float) -> Lease:
        """See `Store`. Waits for the server at most min(timeout, 250 ms)."""
        if (held := self._books.held.get(lease_id)) is not None:
            return held.lease
        slot = f"{next(self._numbers):x}"
        if self._closed:  # a request that waited, as for its prompt to be looked up, is served all the same
            return self._take_alone(slot, lease_id, decision, tie)
        self.start()
        if not self._link.up:
            await self._link.settled()
        self._books.pending.add(slot)
        try:
            return await self._take(slot, lease_id, decision, tie)
        except asyncio.CancelledError:
            self._give_back(slot, None)  # written after the acquire, so carried out after it
            raise
        finally:
            self._books.pending.discard(slot)

    def release(self, lease_id: str) -> bool:
        """See `Store`."""
        held = self._books.remove(lease_id)
        if held is None:
            return False
        self._give_back(held.slot, held.lease.endpoint.name)
        return True

    async def move(self, lease_id: str, endpoint: Endpoint, max_in_flight: int | None = None) -> bool:
        """See `Store`. Without the server no limit is looked at: who asks knows the counts heard last."""
        before = self._books.held.get(lease_id)
        moved = self._books.move(lease_id, endpoint)
        if before is None or moved is None:
            return False
        if self._link.up and not self._closed:
            limit = limit_of(endpoint, max_in_flight)
            if self._ended:
                self._flush()
            try:
                told = await self._ledger.hold([(moved.slot, endpoint.name)], limit=limit)
            except ServerAway:
                self._upkeep.suspect()
            except Refused as error:
                self._upkeep.refused("move", error)
            else:
                self._upkeep.accepted("move")
                if told.fresh:
                    self._upkeep.unknown()
                if told.full:
                    self._books.move(lease_id, before.lease.endpoint)
                    raise Saturated(FULL)
        return True

    async def close(self) -> None:
        """See `Store`. What cannot be told to the server now comes back when the lease runs out."""
        self._closed = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        self._link.unwatch(self._upkeep.link_changed)
        self._books.clear()
        self._flush()
        try:
            await self._ledger.reap(self.owner)
        except (ServerAway, Refused):
            self.stats.errors += 1

    async def _take(self, slot: str, lease_id: str, decision: Decision, tie: float) -> Lease:
        ballot = self._ballots.write(decision, tie)
        if not ballot.names:
            raise Saturated(FULL)
        if self._ended:
            self._flush()  # what ended before this request makes room for it
        try:
            taken = await self._ledger.acquire(slot, tie, ballot)
            if not taken.endpoint and not ballot.complete:
                ballot = self._ballots.write(decision, tie, whole=True)
                taken = await self._ledger.acquire(slot, tie, ballot)
        except ServerAway:
            self.stats.fallbacks += 1
            self._upkeep.suspect()
            return self._take_alone(slot, lease_id, decision, tie)
        except Refused as error:
            self.stats.fallbacks += 1
            self._upkeep.refused("acquire", error)
            return self._take_alone(slot, lease_id, decision, tie)
        self._upkeep.accepted("acquire")
        if taken.fresh:
            self._upkeep.unknown()
        self._books.hear(ballot.names, taken.counts)
        return self._taken(slot, lease_id, ballot, taken)

    def _taken(self, slot: str, lease_id: str, ballot: Ballot, taken: Taken) -> Lease:
        if not taken.endpoint:
            raise Saturated(FULL)
        if (held := self._books.held.get(lease_id)) is not None:  # the same id was asked for twice at once
            self._give_back(slot, None)
            return held.lease
        endpoint = ballot.slates[taken.tier].choices[taken.endpoint].endpoint
        return self._books.add(slot, lease_id, self._cluster, endpoint, taken.tier)

    def _take_alone(self, slot: str, lease_id: str, decision: Decision, tie: float) -> Lease:
        placed = place(decision, self._books.seen, tie)
        if placed is None:
            raise Saturated(FULL)
        tier, choice = placed
        return self._books.add(slot, lease_id, self._cluster, choice.endpoint, tier)

    def _give_back(self, slot: str, name: str | None) -> None:
        self._ended.append((slot, name))
        if self._flush_due is None:
            self._flush_due = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        """Tell the server what was given back, in one call and without waiting."""
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        names = [name for _, name in ended if name is not None]
        try:
            sent = self._ledger.send_release([slot for slot, _ in ended])
        except ServerAway:  # the next resync tells it
            self._books.left(names)
            return

        def told(future: asyncio.Future[Reply]) -> None:
            self._books.left(names)
            if future.cancelled() or future.exception() is not None:
                self._upkeep.suspect()

        sent.add_done_callback(told)
