"""Follows the content of a file.

Files are polled: inotify sees neither NFS nor the symlinks that Kubernetes swaps, and half a second is soon
enough. Whatever touches the disk, and `load`, runs in threads.
"""

import asyncio
import errno
import logging
import math
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Self

from lb_core.errors import ConfigError, Problem
from lb_core.tasks import guarded, spawn

INTERVAL_S = 0.5
MISSING_S = 2.0
"""How long a file may be away: some tools delete and write anew instead of renaming over."""

SETTLE_S = 1.0
"""A file that never stands still is read after so long all the same, to be live within 2 s of its change."""

_LOOKED_AT = 4_000_000
"""Bytes that tell contents apart. Configurations have at most a million; longer ones are all bad."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stamp:
    """Differs when a file was written, replaced, or made readable, or a symlink on its path was swapped."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The stamp of the file that `path` leads to. Raises OSError where there is no regular file."""
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would hang whoever opens it
            raise OSError(errno.EINVAL, "not a regular file")
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _Reading[T]:
    """What a file held. `steady` is False when it has changed meanwhile."""

    steady: bool
    digest: bytes
    loaded: T | ConfigError | None
    """None where the digest was known already."""


class FileWatch[T]:
    """Calls `on_good` with what `load` makes of the file at `path`, each time that its content has changed.

    A content for which `load` or `on_good` raises ConfigError goes to `on_bad`, once, as does a file that
    is away or cannot be read for longer than `missing_s`; the good content after it is told even if it is the
    one from before. Both are called on the event loop, never at the same time, and not after `stop`.
    Any other error is a fault of the program, and is logged; one of `load`, but OSError, ends the watch.

    A change counts when the file has stood still for one interval, because half a YAML list is a valid list.
    So it is live after two intervals and the time of `load`, or SETTLE_S later if writing does not end.

    `loaded` is the stamp of the content that is in use already, taken before that was read.
    """

    def __init__(
        self,
        path: Path,
        load: Callable[[Path], T],
        on_good: Callable[[T], None],
        on_bad: Callable[[ConfigError], None],
        *,
        loaded: Stamp | None = None,
        interval_s: float = INTERVAL_S,
        missing_s: float = MISSING_S,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._load = load
        self._on_good = on_good
        self._on_bad = on_bad
        self._interval_s = interval_s
        self._missing_s = missing_s
        self._settle_s = settle_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._loaded = loaded
        self._digest: bytes | None = None  # of the last content that was told, good or bad
        self._changed: Stamp | None = None
        """Of a change that has still to settle, begun at `_changed_at`."""
        self._changed_at = 0.0
        self._missing_at: float | None = None
        """Since when; infinity once that was told."""

    def start(self) -> None:
        """Begin to watch; does nothing the second time. Needs a running event loop."""
        if self._task is None:
            self._task = spawn(self._run(), name=f"watch of {self._path}")

    async def stop(self) -> None:
        """Watch no more. A `load` under way ends in its thread, and nobody hears of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def reload_now(self) -> None:
        """Read the file at once, and tell what it holds even if that is known or the file is away."""
        self._wanted.set()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._wanted.wait()
            forced = self._wanted.is_set()
            self._wanted.clear()
            try:
                loaded = await self._look(forced=forced)
            except OSError as error:
                self._away(error, forced=forced)
            else:
                with guarded(f"Taking over {self._path}"):
                    self._tell(loaded)

    async def _look(self, *, forced: bool) -> T | ConfigError | None:
        """What there is to tell, if anything. Raises OSError where the file is away or cannot be read."""
        stamp = await asyncio.to_thread(Stamp.of, self._path)
        if stamp == self._loaded and not forced:
            self._changed = self._missing_at = None
            return None
        settled = stamp == self._changed
        now = self._clock()
        self._changed_at = now if self._changed is None else self._changed_at
        self._changed = stamp
        hurry = forced or now - self._changed_at >= self._settle_s
        if not settled and not hurry:
            return None
        reading = await asyncio.to_thread(self._read, stamp, None if forced else self._digest)
        if not reading.steady and not forced and (not hurry or isinstance(reading.loaded, ConfigError)):
            return None  # it is being written; what is bad now may be half of something good
        self._changed = self._missing_at = None
        # Read in a hurry, it may change once more within the same tick of the file system's clock.
        self._loaded = stamp if settled and reading.steady else None
        self._digest = reading.digest
        return reading.loaded

    def _tell(self, loaded: T | ConfigError | None) -> None:
        if isinstance(loaded, ConfigError):
            self._on_bad(loaded)
        elif loaded is not None:
            try:
                self._on_good(loaded)
            except ConfigError as error:
                self._on_bad(error)

    def _read(self, stamp: Stamp, known: bytes | None) -> _Reading[T]:
        """Runs in a thread. Raises OSError where nothing can be read."""
        with self._path.open("rb") as file:
            digest = blake2b(file.read(_LOOKED_AT) + str(stamp.size).encode(), digest_size=16).digest()
        loaded: T | ConfigError | None = None
        if digest != known:
            try:
                loaded = self._load(self._path)
            except ConfigError as error:
                loaded = error
        return _Reading(Stamp.of(self._path) == stamp, digest, loaded)

    def _away(self, error: OSError, *, forced: bool) -> None:
        now = self._clock()
        self._changed = None
        self._missing_at = now if self._missing_at is None else self._missing_at
        if forced or now - self._missing_at > self._missing_s:
            self._missing_at = math.inf
            self._loaded = self._digest = None  # so that its return is told
            why = f"cannot be read: {error.strerror or os.strerror(error.errno or errno.EIO)}"
            self._on_bad(ConfigError(str(self._path), (Problem("", why),)))
