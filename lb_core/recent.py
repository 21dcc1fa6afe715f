"""How often something happened in the last seconds, to the second, and what follows for who has to wait."""

import math
from collections.abc import Callable

WINDOW_S = 10
LONGEST_WAIT_S = 30


class Recent:
    """A count over the last 10 s. Memory does not grow with what is counted."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second = int(clock())
        self._counts = [0] * WINDOW_S

    def add(self) -> None:
        """It happened once more."""
        self._forget()
        self._counts[self._second % WINDOW_S] += 1

    def total(self) -> int:
        """How often it did, in these seconds."""
        self._forget()
        return sum(self._counts)

    def _forget(self) -> None:
        now = int(self._clock())
        for second in range(max(self._second, now - WINDOW_S) + 1, now + 1):
            self._counts[second % WINDOW_S] = 0
        self._second = max(self._second, now)


class Pace:
    """How fast a cluster gets through its requests, so that who finds it full is told when to come back."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._finished = Recent(clock=clock)
        self._refused = Recent(clock=clock)

    def finished(self) -> None:
        """A request gave its place back."""
        self._finished.add()

    def refused(self) -> None:
        """There was no place for a request."""
        self._refused.add()

    def wait_s(self) -> int:
        """Seconds after which there should be a place for the one refused last, 1 to 30.

        Those refused in the last 10 s will come back, so they are the queue, and places come free at the
        rate at which they did in that time.
        """
        finished = self._finished.total()
        if not finished:
            return WINDOW_S
        return min(max(math.ceil(self._refused.total() * WINDOW_S / finished), 1), LONGEST_WAIT_S)
