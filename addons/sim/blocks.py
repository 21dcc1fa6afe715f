"""The KV cache of one engine: counted blocks in use, and idle ones kept for their prefix (LRU)."""

from __future__ import annotations

from collections.abc import Sequence


class BlockCache:
    """At most `capacity` blocks. A block in use is never evicted; an idle one makes room, oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._users: dict[int, int] = {}
        self._idle: dict[int, None] = {}  # in order of age
        self._private = 0  # in use and not (yet) shareable: answers, and the last part of a prompt

    @property
    def usage(self) -> float:
        """The share of blocks in use, 0 to 1; idle blocks count as free, as in vLLM."""
        return (len(self._users) + self._private) / self.capacity

    def acquire(self, keys: Sequence[int], private: int) -> int | None:
        """Take the blocks of a prompt and `private` more; returns how many leading ones were cached.

        None, and nothing taken, when there is no room.
        """
        fresh = sum(key not in self._users for key in keys)
        if len(self._users) + self._private + fresh + private > self.capacity:
            return None
        hits = 0
        for key in keys:
            if key not in self._users and key not in self._idle:
                break
            hits += 1
        for key in keys:
            self._idle.pop(key, None)
            self._users[key] = self._users.get(key, 0) + 1
        self._private += private
        self._evict()
        return hits

    def release(self, keys: Sequence[int], private: int, *, answer: Sequence[int] = ()) -> None:
        """Give back what `acquire` took. `answer` are the keys of private blocks that are full by now."""
        self._private -= private
        # From the tail on: it is the first to be evicted, and without its head a block is of no use.
        for key in reversed(answer):
            if key not in self._users:
                self._idle.pop(key, None)
                self._idle[key] = None
        for key in reversed(keys):
            users = self._users[key] - 1
            if users:
                self._users[key] = users
            else:
                del self._users[key]
                self._idle[key] = None
        self._evict()

    def _evict(self) -> None:
        excess = len(self._users) + self._private + len(self._idle) - self.capacity
        for _ in range(excess):
            del self._idle[next(iter(self._idle))]
