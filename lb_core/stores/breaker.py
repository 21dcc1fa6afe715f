"""When to stop asking a server that fails or is slow, and how long to wait before trying it again."""

from collections import deque
from collections.abc import Callable

SLOW_S = 0.2
_SLOW_CALLS = 3
_WINDOW_S = 1.0
_FAILURES = 2
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_GOOD_AFTER_S = 10.0


class Breaker:
    """Opens after 2 failures in a row, or 3 calls slower than 200 ms within a second.

    The pause before a probe is 0.5 s. For a server that is slow it doubles up to 5 s, so that it does not
    come and go all the time, and starts anew once the server has been good for 10 s. For one that is away
    it does not: no client waits for a probe, and counts are right again the sooner.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._slow: deque[float] = deque(maxlen=_SLOW_CALLS)
        self._pause_s = _FIRST_PAUSE_S
        self._closed_at: float | None = None

    def answered(self, took_s: float) -> bool:
        """Note an answer, also an error reply; True if that is one slow answer too many."""
        self._failures = 0
        if took_s <= SLOW_S:
            return False
        now = self._clock()
        self._slow.append(now)
        return len(self._slow) == _SLOW_CALLS and now - self._slow[0] <= _WINDOW_S

    def failed(self) -> bool:
        """Note a call without an answer; True if that is one too many."""
        self._failures += 1
        self._slow.append(self._clock())
        return self._failures >= _FAILURES

    def closed(self) -> None:
        """Note that the server is asked from now on."""
        self._failures = 0
        self._slow.clear()
        self._closed_at = self._clock()

    def pause_s(self, *, slow: bool) -> float:
        """How long to leave the server alone now."""
        if not slow:
            return _FIRST_PAUSE_S
        now = self._clock()
        if self._closed_at is not None and now - self._closed_at >= _GOOD_AFTER_S:
            self._pause_s = _FIRST_PAUSE_S
        self._closed_at = None
        pause = self._pause_s
        self._pause_s = min(pause * 2, _LONGEST_PAUSE_S)
        return pause
