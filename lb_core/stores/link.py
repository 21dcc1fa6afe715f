"""A lasting way to one Redis master: connects when it can, says when it cannot, never raises to a client."""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from lb_core.stores.breaker import SLOW_S, Breaker
from lb_core.stores.patience import at_most
from lb_core.stores.scripts import ACQUIRE, BEAT, FSCK, HOLD, REAP, RELEASE, Script
from lb_core.stores.server import RedisSettings, Server
from lb_core.stores.wire import Argument, Refused, Reply, ServerAway, Wire
from lb_core.tasks import spawn

_LONGEST_CALL_S = 0.25
_LONGEST_CONNECT_S = 1.0
_PROBES = 3
_SILENCE_S = 1.0
_FALLEN_BACK_S = 1.0

_ANSWERS = "it answers"
"""Reasons that begin so are worth a line of their own: somebody has to act on a wrong password."""

_MOVED = frozenset({"READONLY", "MOVED", "ASK", "NOAUTH"})
"""Error replies after which another connection may do better."""

logger = logging.getLogger(__name__)


class Link:
    """One connection that is kept up, with a breaker. Belongs to the event loop that first uses it.

    While it is down every call raises ServerAway at once. `watch` tells when that changes.
    """

    def __init__(self, settings: RedisSettings, key: str) -> None:
        """`key` is any key to be written; in a cluster its slot decides which master this leads to."""
        self.up = False
        self._server = Server.of(settings)
        self._name = f"Redis at {settings.host}:{settings.port}"
        self._key = key
        self.timeout_ms = settings.timeout_ms
        """May be set at any time, and holds from the next call on."""
        self._wire: Wire | None = None
        self._failures = 0
        self._task: asyncio.Task[None] | None = None
        self._watchers: list[Callable[[bool], None]] = []
        self._said_down: set[str] = set()
        self._said_evicts = False

    def start(self) -> None:
        """Begin to connect; does nothing the second time. Needs a running event loop."""
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._breaker = Breaker(self._loop.time)
            self._trouble: asyncio.Future[str] = self._loop.create_future()
            self._settled = asyncio.Event()
            self._task = spawn(self._keep(), name=f"{self._name}: connection")

    @property
    def _call_s(self) -> float:
        return min(self.timeout_ms / 1000, _LONGEST_CALL_S)

    @property
    def _connect_s(self) -> float:
        return min(self.timeout_ms / 1000, _LONGEST_CONNECT_S)

    @property
    def is_cluster(self) -> bool:
        """True when keys are on several masters."""
        return self._server.kind == "cluster"

    async def settled(self) -> None:
        """Wait for the outcome of the first attempt to connect, no longer than a call may take."""
        self.start()
        if not self._settled.is_set():
            with suppress(TimeoutError, ServerAway):
                async with at_most(self._call_s):
                    await self._settled.wait()

    async def close(self) -> None:
        """Close the connection and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._wire is not None:
            self._wire.abort()
        self.up = False

    def watch(self, watcher: Callable[[bool], None]) -> None:
        """Have `watcher` called with True each time the link comes up, with False each time it goes down."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[bool], None]) -> None:
        """Call it no more."""
        self._watchers.remove(watcher)

    def send(self, *command: Argument) -> asyncio.Future[Reply]:
        """Write a command without waiting. Raises ServerAway when the link is down."""
        if not self.up or self._wire is None:
            raise ServerAway("the server is away")
        return self._wire.call(*command)

    async def call(self, *command: Argument) -> Reply:
        """Send a command and wait for its reply, for at most min(timeout, 250 ms); see `patience` too.

        Raises ServerAway when there is no answer, so its outcome is unknown, and Refused for an error reply.
        """
        started = self._loop.time()
        try:
            async with at_most(self._call_s):
                reply = await self.send(*command)
        except TimeoutError:
            if self._breaker.failed():
                self._in_trouble("it does not answer in time")
            raise ServerAway("no answer in time") from None
        except Refused as error:
            self._breaker.answered(self._loop.time() - started)
            if error.code in _MOVED:
                self._in_trouble(f"{_ANSWERS} {error.code}", drop=True)
            raise
        if self._breaker.answered(self._loop.time() - started):
            self._in_trouble("it is slow")
        return reply

    async def run(self, script: Script, keys: tuple[str, ...], *arguments: Argument) -> Reply:
        """Run a script, as `call`. One that the server has forgotten is sent again."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except Refused as error:
            if error.code != "NOSCRIPT":
                raise
        return await self.call("EVAL", script.source, len(keys), *keys, *arguments)

    def _in_trouble(self, why: str, *, drop: bool = False) -> None:
        if self.up and not self._trouble.done():
            self._trouble.set_result(why)
            self._set(up=False)
            if drop and self._wire is not None:
                self._wire.abort()

    def _set(self, *, up: bool) -> None:
        self.up = up
        for watcher in tuple(self._watchers):
            watcher(up)

    async def _keep(self) -> None:
        while True:
            slow = False
            try:
                wire = self._wire if self._wire and not self._wire.lost.done() else await self._connect()
                slow = await self._is_slow(wire)
                why = "it is slow" if slow else ""
            except (OSError, ServerAway, Refused) as error:  # TimeoutError is an OSError
                why = _reason(error)
                self._failures += 1
                if self._wire is not None and self._wire.silent_s > _SILENCE_S:
                    self._wire.abort()
            if not why:
                came_up = self._loop.time()
                why = await self._serve(wire)
                if wire.lost.done() and self._loop.time() - came_up > _FALLEN_BACK_S:
                    self._say_down(why)
                    continue  # a connection that was good and is lost: try again at once
                slow = why == "it is slow"
            self._say_down(why)
            self._settled.set()
            await asyncio.sleep(self._breaker.pause_s(slow=slow))

    async def _serve(self, wire: Wire) -> str:
        """Be up until there is trouble; tell which."""
        self._trouble = self._loop.create_future()
        self._breaker.closed()
        self._set(up=True)
        self._settled.set()
        if self._said_down:
            logger.info("%s is back: counts are shared again.", self._name)
            self._said_down.clear()
        ends: list[asyncio.Future[Any]] = [self._trouble, wire.lost]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._trouble.done():
            self._trouble.set_result("the connection was lost")
            self._set(up=False)
        return self._trouble.result()

    def _say_down(self, why: str) -> None:
        if not self._said_down or (why.startswith(_ANSWERS) and why not in self._said_down):
            logger.warning("%s is away (%s): counting in this process alone.", self._name, why)
        self._said_down.add(why)

    async def _connect(self) -> Wire:
        async with asyncio.timeout(self._connect_s):
            # After a failure another one is asked first: who accepts and is silent takes all of this time.
            master = await self._server.master(self._key, first=self._failures)
            wire = await self._server.connect(master)
            try:
                await self._server.log_in(wire)
                await self._look_round(wire)
                for script in (ACQUIRE, HOLD, RELEASE, BEAT, REAP, FSCK):
                    with suppress(Refused):  # an ACL may forbid it; EVAL brings the script as well
                        await wire.call("SCRIPT", "LOAD", script.source)
                self._wire = wire
            finally:
                if self._wire is not wire:
                    wire.abort()
        return wire

    async def _look_round(self, wire: Wire) -> None:
        """Refuse a replica, and warn of a server that may throw counts away."""
        try:
            facts = (await wire.call("INFO", "replication")) + (await wire.call("INFO", "memory"))
        except Refused as error:
            if error.code == "NOPERM":
                return
            raise
        if b"role:slave" in facts:
            raise ServerAway("it is a replica")
        if (
            b"maxmemory_policy:" in facts
            and b"maxmemory_policy:noeviction" not in facts
            and not self._said_evicts
        ):
            logger.warning(
                "%s may evict keys: set maxmemory-policy noeviction, or counts get lost.", self._name
            )
            self._said_evicts = True

    async def _is_slow(self, wire: Wire) -> bool:
        for _ in range(_PROBES):
            started = self._loop.time()
            async with asyncio.timeout(self._connect_s):
                await wire.call("PING")
            if self._loop.time() - started > SLOW_S:
                return True
        return False


def _reason(error: Exception) -> str:
    """What to say in the log: the kind of fault, with no address and nothing that the server repeats."""
    if isinstance(error, Refused):
        return f"{_ANSWERS} {error.code}"
    if isinstance(error, ServerAway):
        return str(error)
    return "it does not answer in time" if isinstance(error, TimeoutError) else type(error).__name__


class Links:
    """The links of one balancer: one for each server, shared; in a Redis cluster one for each key."""

    def __init__(self) -> None:
        self._links: dict[tuple[RedisSettings, str], Link] = {}

    def to(self, settings: RedisSettings, key: str) -> Link:
        """The link to the master that holds `key`. Raises ValueError when the URL cannot be used."""
        link = Link(settings, key)
        place = (settings, key if link.is_cluster else "")
        return self._links.setdefault(place, link)

    def all(self) -> tuple[Link, ...]:
        """Every link that there is."""
        return tuple(self._links.values())

    async def keep(self, used: Collection[Link]) -> None:
        """Close the links that are not among these."""
        unused = {place: link for place, link in self._links.items() if link not in used}
        for place in unused:
            del self._links[place]
        for link in unused.values():
            await link.close()

    async def settled(self) -> None:
        """Wait until each is up, or is known to be away."""
        await asyncio.gather(*(link.settled() for link in self.all()))

    async def close(self) -> None:
        """Close them all."""
        await self.keep(())
