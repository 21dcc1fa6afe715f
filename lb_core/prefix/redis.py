"""The index that all balancers share.

In Redis, all under the cluster's hash tag:

- `p:<key in hex>`: `<generation>:<endpoint>`, expires after the TTL;
- `forgotten`: endpoint → its generation, which is when it was last forgotten, absent is 0; `forgets`: the
  newest of these. Both expire, and names leave, when no entry of before can be left;
- `secret`: what keys are made with, only where none is configured. Lost when unused for long, and made anew.

An entry counts unless its generation is older than its owner's. Every match reads `forgets` along with the
entries, so every balancer learns in the same call that there is a newer generation, and reads `forgotten`
only then.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

from lb_core.policies.prefix_cache import TTL_S
from lb_core.prefix.base import kept, matches
from lb_core.stores.ledger import key
from lb_core.stores.scripts import FORGET, Script
from lb_core.stores.wire import Argument, Refused, Reply, ServerAway
from lb_core.tasks import spawn
from lb_core.types import PrefixMatch

_BATCH = 200
"""Entries written at once: some 0.2 ms of the server's time."""
_MOST_WAITING = 20_000
"""Entries that wait to be written; beyond, new ones are dropped."""
_SECRET_S = 7 * 24 * 3600
"""How long a secret is kept after the last entry, unless entries live longer."""
_ENTRY = re.compile(r"([0-9]{1,16}):(.+)", re.DOTALL)

logger = logging.getLogger(__name__)


class Calls(Protocol):
    """What is needed of a `stores.link.Link`. Calls are carried out in the order in which they are sent."""

    def send(self, *command: Argument) -> asyncio.Future[Reply]:
        """Write a command. Raises ServerAway; the future gives the reply or raises Refused or ServerAway."""
        ...

    async def call(self, *command: Argument) -> Reply:
        """The same and wait for the reply, for a limited time. Raises ServerAway or Refused."""
        ...

    async def run(self, script: Script, keys: tuple[str, ...], *arguments: Argument) -> Reply:
        """The same for a script."""
        ...


class RedisPrefixIndex:
    """See `PrefixIndex`. Belongs to the event loop that first uses it."""

    def __init__(self, server: Calls, cluster: str, *, ttl_s: int = TTL_S) -> None:
        self._server = server
        self._cluster = cluster
        self._ttl_s = ttl_s
        self._secret_s = max(_SECRET_S, 2 * ttl_s)
        self._entry = key(cluster, "p:")
        self._forgotten_at = key(cluster, "forgotten")
        self._forgets_at = key(cluster, "forgets")
        self._secret_at = key(cluster, "secret")
        self._secret: str | None = None
        self._generations: Mapping[str, int] = {}
        self._forgets: bytes | None = None
        self._waiting: dict[str, str] = {}
        self._to_forget: set[str] = set()
        self._writer: asyncio.Task[None] | None = None
        self._refused: set[str] = set()

    async def match(self, keys: Sequence[bytes]) -> tuple[PrefixMatch, ...]:
        """See `PrefixIndex`. One MGET; nothing is known while the server is away."""
        if not keys:
            return ()
        entries = [self._entry + keys[index].hex() for index in kept(len(keys))]
        try:
            secret, forgets, *values = await self._server.call(
                "MGET", self._secret_at, self._forgets_at, *entries
            )
            if forgets != self._forgets:
                await self._learn(forgets)
        except ServerAway:
            return ()
        except Refused as error:
            self._note("known", error.code)
            return ()
        self._note("known")
        if self._secret is not None and secret != self._secret.encode():
            self._secret = None  # the server was emptied, or restored: ask it anew
        return matches([self._owner(value) for value in values], len(keys))

    def record(self, keys: Sequence[bytes], endpoint: str) -> None:
        """See `PrefixIndex`. Written in the background; dropped while the server is away."""
        if len(self._waiting) >= _MOST_WAITING:
            return
        value = f"{self._generations.get(endpoint, 0)}:{endpoint}"
        for index in kept(len(keys)):
            self._waiting[self._entry + keys[index].hex()] = value
        self._write_soon()

    def forget(self, endpoint: str) -> None:
        """See `PrefixIndex`. All balancers forget; while the server is away this is kept for later."""
        self._to_forget.add(endpoint)
        self._write_soon()

    async def secret(self) -> str | None:
        """See `PrefixIndex`: the first balancer makes it. Whoever may read the server may read it there."""
        if self._secret is None:
            try:
                secret = secrets.token_hex(32)
                made = self._server.send("SET", self._secret_at, secret, "NX", "EX", self._secret_s)
                try:
                    reply = await self._server.call("GET", self._secret_at)
                finally:
                    _settle(made)
            except ServerAway:
                return None
            except Refused as error:
                self._note("known", error.code)
                return None
            self._secret = None if reply is None else reply.decode("utf-8", "replace")
        return self._secret

    async def close(self) -> None:
        """See `PrefixIndex`."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _learn(self, forgets: bytes | None) -> None:
        reply = iter(await self._server.call("ZRANGE", self._forgotten_at, 0, -1, "WITHSCORES"))
        self._generations = {
            name.decode("utf-8", "replace"): int(float(at)) for name, at in zip(reply, reply, strict=True)
        }
        self._forgets = forgets

    def _owner(self, value: bytes | None) -> str | None:
        """Whose the entry is; None if it counts no more, or was not written by a balancer."""
        found = _ENTRY.fullmatch((value or b"").decode("utf-8", "replace"))
        if found is None or found[2] in self._to_forget:
            return None
        return found[2] if int(found[1]) >= self._generations.get(found[2], 0) else None

    def _write_soon(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = spawn(self._write(), name=f"prefixes of {self._cluster}")

    async def _write(self) -> None:
        try:
            while self._waiting or self._to_forget:
                if self._to_forget:
                    await self._write_forgets()
                await self._write_entries()
        except ServerAway:
            self._waiting.clear()
        except Refused as error:
            self._note("recorded", error.code)
            self._waiting.clear()

    async def _write_forgets(self) -> None:
        for name in tuple(self._to_forget):
            try:
                # Twice the TTL: a balancer may record for a while what it does not know to be forgotten.
                await self._server.run(FORGET, (self._forgotten_at, self._forgets_at), name, 2 * self._ttl_s)
            except Refused as error:
                self._note("recorded", error.code)
            self._to_forget.discard(name)

    async def _write_entries(self) -> None:
        batch = list(islice(self._waiting.items(), _BATCH))
        sent: list[asyncio.Future[Reply]] = []
        try:
            if self._secret is not None and batch:
                sent.append(self._server.send("EXPIRE", self._secret_at, self._secret_s))
            for name, value in batch[:-1]:
                sent.append(self._server.send("SET", name, value, "EX", self._ttl_s))
            for name, value in batch[-1:]:
                # Replies come in the order of the calls: with this one all are there.
                await self._server.call("SET", name, value, "EX", self._ttl_s)
        finally:
            for future in sent:
                _settle(future)
        self._note("recorded")
        for name, value in batch:
            if self._waiting.get(name) == value:
                del self._waiting[name]

    def _note(self, what: str, refused: str = "") -> None:
        """Log when the server begins, and when it ceases, to answer with errors."""
        if refused and what not in self._refused:
            logger.warning(
                "Redis answers %s: prefixes of cluster %s are not %s.", refused, self._cluster, what
            )
            self._refused.add(what)
        elif not refused and what in self._refused:
            logger.info("Prefixes of cluster %s are %s again.", self._cluster, what)
            self._refused.remove(what)


def _settle(future: asyncio.Future[Reply]) -> None:
    """Have it no longer awaited. An error in it is that of the call after it as well."""
    if not future.cancel() and not future.cancelled():
        future.exception()
