"""Polling with a limit of time, and ports: what tests of real processes need all the time."""

import asyncio
import random
import socket
import time
from collections.abc import Callable

_WHAT = "what was waited for"
_ANY = random.SystemRandom()  # tests draw the same numbers, but must not get the same ports
_given: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody has, and another one each time.

    It is below those that the kernel gives to connections (32768 and above), and so is the bus of a Redis
    cluster 10,000 above it: both stay free.
    """
    while True:
        port = _ANY.randrange(12_000, 22_000)
        if port in _given:  # and is not bound yet
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


class _Limit:
    """Seconds that count only while this machine lets us run.

    A sleep that is longer than asked for is not counted beyond what was asked: then all processes were
    held up, the one that is tested too.
    """

    def __init__(self, within_s: float, what: str) -> None:
        self._within_s, self._what = within_s, what
        self._began = time.monotonic()
        self._stalled_s = 0.0

    def spent_s(self) -> float:
        return time.monotonic() - self._began - self._stalled_s

    def slept(self, asked_s: float, since: float) -> None:
        """Raises AssertionError when the time is over."""
        self._stalled_s += max(0.0, time.monotonic() - since - asked_s)
        assert self.spent_s() < self._within_s, f"not within {self._within_s} s: {self._what}"


async def until(
    true: Callable[..., object], what: str = _WHAT, *, within_s: float = 10, every_s: float = 0.005
) -> float:
    """Poll in the event loop until `true()`; gives the seconds it took.

    Raises AssertionError with `what` when it is not in time.
    """
    limit = _Limit(within_s, what)
    while not true():
        since = time.monotonic()
        await asyncio.sleep(every_s)
        limit.slept(every_s, since)
    return limit.spent_s()


async def eventually(true: Callable[..., object], what: str = _WHAT, *, within_s: float = 10) -> float:
    """The same for what blocks: `true` runs in a thread."""
    limit = _Limit(within_s, what)
    while not await asyncio.to_thread(true):
        since = time.monotonic()
        await asyncio.sleep(0.05)
        limit.slept(0.05, since)
    return limit.spent_s()


def wait_until(true: Callable[..., object], what: str = _WHAT, *, within_s: float = 10) -> float:
    """The same without an event loop."""
    limit = _Limit(within_s, what)
    while not true():
        since = time.monotonic()
        time.sleep(0.02)
        limit.slept(0.02, since)
    return limit.spent_s()
