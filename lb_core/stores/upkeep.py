"""What keeps a shared ledger true: heartbeat, resync, reaping of the dead, and the check of the sums."""

import asyncio
import itertools
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from lb_core.stores.books import Books
from lb_core.stores.ledger import CHUNK, RemoteLedger
from lb_core.stores.link import Link
from lb_core.stores.wire import Refused, ServerAway

_RESYNC_EVERY = 10
"""Beats. Equal lengths of ledger and books can hide one slot missing and one too many."""

_SHORTEST_PAUSE_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StoreStats:
    """What happened to a shared store since it began. `fsck_fixed` must stay 0."""

    errors: int = 0
    fallbacks: int = 0
    resyncs: int = 0
    reaped: int = 0
    fsck_fixed: int = 0
    shared: bool = False
    """True while counts are shared with the other balancers."""


class Upkeep:
    """Rounds of one store. `suspect` asks for a round with a resync as soon as possible."""

    def __init__(
        self,
        cluster: str,
        ledger: RemoteLedger,
        link: Link,
        books: Books,
        stats: StoreStats,
        flush: Callable[[], None],
        *,
        beat_s: float,
        fsck_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._link = link
        self._books = books
        self._stats = stats
        self._flush = flush
        self._beat_s = beat_s
        self._fsck_s = fsck_s
        self._clock = clock
        self._fsck_at = clock() + fsck_s
        self._beats = 0
        self._resyncs_due = 1
        self._wake = asyncio.Event()
        self._refusals: set[str] = set()
        self._check_due = False

    async def run(self) -> None:
        """Do rounds for ever."""
        while True:
            self._wake.clear()
            if self._link.up:
                await self._round()
            await asyncio.sleep(_SHORTEST_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._beat_s * random.uniform(0.8, 1) - _SHORTEST_PAUSE_S):
                    await self._wake.wait()

    def link_changed(self, up: bool) -> None:
        """See `Link.watch`."""
        self._stats.shared = up
        self._books.alone()
        # Twice, because what was still under way on a lost connection may be carried out after the first.
        self.suspect(times=2 if up else 1)

    def suspect(self, times: int = 1) -> None:
        """The ledger may not say what we hold."""
        self._resyncs_due = max(self._resyncs_due, times)
        self._wake.set()

    def unknown(self) -> None:
        """The server had forgotten us. Who came back before us and checked the sums has left us out."""
        self._check_due = True
        self.suspect()

    def refused(self, call: str, error: Refused) -> None:
        """The server answers, but not as it should. Said once, until all calls succeed again."""
        self._stats.errors += 1
        self.suspect()
        if not self._link.up:  # this error was a reason to leave the connection, which says so
            return
        self._stats.shared = False
        if not self._refusals:
            logger.warning("Redis answers %s for cluster %s: counting alone.", error.code, self._cluster)
        self._refusals.add(call)

    def accepted(self, call: str) -> None:
        """This call succeeded."""
        if call in self._refusals:
            self._refusals.discard(call)
            if not self._refusals:
                self._stats.shared = True
                logger.info("Redis serves cluster %s again: counts are shared.", self._cluster)

    async def _round(self) -> None:
        try:
            await self._tend()
        except ServerAway:
            self._stats.errors += 1
            self.suspect()
        except Refused as error:
            known = "upkeep" in self._refusals
            self.refused("upkeep", error)
            self._books.alone()
            if error.code == "WRONGTYPE" and not known:
                with suppress(ServerAway, Refused):
                    name = await self._ledger.wrong_key()
                    logger.error("The key %s in Redis is not ours: remove it, or use another database.", name)
        else:
            self.accepted("upkeep")
            self.accepted("move")  # the resync has told the same; another move may be long in coming

    async def _tend(self) -> None:
        if self._resyncs_due:
            await self._resync()
        self._flush()
        self._beats += 1
        held, pending = len(self._books.held), len(self._books.pending)
        beat = await self._ledger.beat()
        self._check_due |= not beat.known
        if (
            not beat.known
            or not held <= beat.slots <= held + pending
            or self._resyncs_due
            or self._beats % _RESYNC_EVERY == 0
        ):
            await self._resync()
        for owner in beat.expired:
            self._stats.reaped += await self._ledger.reap(owner)
        await self._compare()

    async def _resync(self) -> None:
        """Make our ledger say what our books say. Every step may be repeated, so nothing needs a lock."""
        again, self._resyncs_due = self._resyncs_due - 1, 0
        books = self._books
        self._stats.resyncs += 1
        try:
            for chunk in itertools.batched(tuple(books.held), CHUNK):
                # Read now, not before the loop: what ended meanwhile must not come back.
                now = [books.held[lease_id] for lease_id in chunk if lease_id in books.held]
                told = await self._ledger.hold((held.slot, held.lease.endpoint.name) for held in now)
                # If our ledger alone was lost, the counts are too high now; if we were forgotten: `unknown`.
                self._check_due |= told.changed > 0 or told.fresh
            self._flush()
            present = await self._ledger.slots()
            ours = {held.slot for held in books.held.values()} | books.pending
            for chunk in itertools.batched([slot for slot in present if slot not in ours], CHUNK):
                await self._ledger.release(list(chunk))
        except (ServerAway, Refused):
            self._resyncs_due = max(again + 1, self._resyncs_due)
            raise
        if again > 0:
            self.suspect(times=again)

    async def _compare(self) -> None:
        """Hear all counts, and have the sums checked from time to time or when they cannot be right."""
        self._flush()
        own, sure = dict(self._books.own), not self._resyncs_due
        counts = await self._ledger.counts()
        self._books.hear_all(counts)
        too_low = sure and any(count > counts.get(name, 0) for name, count in own.items())
        if too_low or self._check_due:
            await self._check()
        elif self._clock() >= self._fsck_at:
            self._fsck_at = self._clock() + self._fsck_s
            if await self._ledger.may_check(int(self._fsck_s * 900)):
                await self._check()

    async def _check(self) -> None:
        """Have the sums corrected; due again if that fails, or if owners come or go meanwhile."""
        self._check_due, fixed = False, None
        try:
            fixed = await self._ledger.fsck()
        finally:
            if fixed is None:
                self._check_due = True
                self._wake.set()
        if fixed:
            self._stats.fsck_fixed += fixed
            logger.warning(
                "Counts of cluster %s were wrong at %d endpoints: corrected.", self._cluster, fixed
            )
