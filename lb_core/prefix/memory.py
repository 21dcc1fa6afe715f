"""The index in this process."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lb_core.policies.prefix_cache import MAX_ENTRIES, TTL_S
from lb_core.prefix.base import kept, matches
from lb_core.types import PrefixMatch


class _Entry(NamedTuple):
    owner: str
    recorded: int
    """How many endpoints had been forgotten then."""
    expires: float


class _Forgotten(NamedTuple):
    number: int
    """Of all that were forgotten; what was recorded before counts no more."""
    until: float
    """When all of that has expired."""


class MemoryPrefixIndex:
    """See `PrefixIndex`. Holds at most `max_entries` keys; the least recently used go first."""

    def __init__(
        self,
        *,
        ttl_s: float = TTL_S,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._clock = clock
        self._secret = secrets.token_hex(32)
        # In the order of their recording, which is that of their expiry, as the TTL is the same for all.
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._forgets = 0
        self._forgotten: OrderedDict[str, _Forgotten] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    async def match(self, keys: Sequence[bytes]) -> tuple[PrefixMatch, ...]:
        """See `PrefixIndex`."""
        now = self._clock()
        return matches([self._owner(keys[index], now) for index in kept(len(keys))], len(keys))

    def record(self, keys: Sequence[bytes], endpoint: str) -> None:
        """See `PrefixIndex`."""
        now = self._clock()
        entry = _Entry(endpoint, self._forgets, now + self._ttl_s)
        for index in kept(len(keys)):
            self._entries[keys[index]] = entry
            self._entries.move_to_end(keys[index])
        while len(self._entries) > self._max_entries or self._oldest_expired(now):
            self._entries.popitem(last=False)

    def forget(self, endpoint: str) -> None:
        """See `PrefixIndex`."""
        now = self._clock()
        self._forgets += 1
        self._forgotten[endpoint] = _Forgotten(self._forgets, now + self._ttl_s)
        self._forgotten.move_to_end(endpoint)
        while next(iter(self._forgotten.values())).until <= now:
            self._forgotten.popitem(last=False)

    async def secret(self) -> str | None:
        """See `PrefixIndex`."""
        return self._secret

    async def close(self) -> None:
        """See `PrefixIndex`; nothing ever is."""

    def _owner(self, key: bytes, now: float) -> str | None:
        entry = self._entries.get(key)
        if entry is None or entry.expires <= now:
            return None
        forgotten = self._forgotten.get(entry.owner)
        return entry.owner if forgotten is None or entry.recorded >= forgotten.number else None

    def _oldest_expired(self, now: float) -> bool:
        return bool(self._entries) and next(iter(self._entries.values())).expires <= now
