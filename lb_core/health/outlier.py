"""Outlier detection for one endpoint: when it is ejected, for how long, and when it is back."""

import enum
from collections.abc import Callable
from math import inf

from lb_core.health.config import HealthConfig

SILENT = "silent"
"""The reason of an ejection that any token ends."""
_BUCKETS = 6
_HEALTHY_S = 60.0
"""So long in health takes back one doubling of the ejection time."""
_JITTER = 0.2
"""So that the balancers of a fleet do not all probe at once."""
_LARGE = 4
"""From so many endpoints on, losing one is cheap, and fewer failures in a row are enough."""


class FailureShare:
    """Successes and failures of the last `window_s`, in buckets: memory does not grow with traffic."""

    def __init__(self, window_s: float) -> None:
        self._width = window_s / _BUCKETS
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._ticks = [-1] * _BUCKETS
        self._good = [0] * _BUCKETS
        self._bad = [0] * _BUCKETS

    def good(self, now: float) -> int:
        """Count a success; the number returned can be given to `recant`."""
        tick = int(now / self._width)
        self._good[self._bucket(tick)] += 1
        return tick

    def bad(self, now: float) -> None:
        """Count a failure."""
        self._bad[self._bucket(int(now / self._width))] += 1

    def recant(self, tick: int) -> None:
        """Take a success back, unless it is forgotten already."""
        index = tick % _BUCKETS
        if self._ticks[index] == tick and self._good[index]:
            self._good[index] -= 1

    def counts(self, now: float) -> tuple[int, int]:
        """Give the failures and all requests of the window."""
        oldest = int(now / self._width) - _BUCKETS + 1
        live = [index for index, tick in enumerate(self._ticks) if tick >= oldest]
        bad = sum(self._bad[index] for index in live)
        return bad, bad + sum(self._good[index] for index in live)

    def _bucket(self, tick: int) -> int:
        index = tick % _BUCKETS
        if self._ticks[index] != tick:
            self._ticks[index] = tick
            self._good[index] = self._bad[index] = 0
        return index


class Phase(enum.StrEnum):
    """As Envoy and the circuit breakers use the words."""

    HEALTHY = "healthy"
    EJECTED = "ejected"
    HALF_OPEN = "half-open"


class Outlier:
    """The phase of one endpoint. Times are those of the caller's clock.

    News of attempts that began before the phase did is old: it neither ejects again nor brings back.
    """

    def __init__(self, config: HealthConfig, dice: Callable[[], float]) -> None:
        self._config = config
        self._dice = dice
        self.phase = Phase.HEALTHY
        self.reason = ""
        self.detail = ""
        self.until = inf
        """End of the ejection."""
        self.unreachable = False
        """Ejected for failures to connect, and none has succeeded since."""
        self.refused_at = -inf
        """The last failure to connect."""
        self.succeeded_at = -inf
        """When the attempt began that succeeded last."""
        self.tried_at = -inf
        """When the attempt began that failed to connect last."""
        self.share = FailureShare(config.failure_share_window_s)
        self._since = -inf
        self._ejected_at = -inf
        self._doublings = 0
        self._successes = 0
        self._refusals: list[float] = []
        self._failures = 0
        self._finding = ""

    @property
    def shut(self) -> bool:
        """Ejected, though it can be connected to: not to be tried before `until`."""
        return self.phase is Phase.EJECTED and not self.unreachable

    def configure(self, config: HealthConfig) -> None:
        """Go on with other parameters; the phase stays."""
        if config.failure_share_window_s != self._config.failure_share_window_s:
            self.share = FailureShare(config.failure_share_window_s)
        self._config = config

    def advance(self, now: float) -> None:
        """End an ejection whose time is over."""
        if self.phase is Phase.EJECTED and now >= self.until:
            self._enter(Phase.HALF_OPEN, now)
            self.until = inf
            self._successes = 0

    def succeeded(self, now: float, started: float) -> tuple[bool, int]:
        """Count a success; gives whether the endpoint returns to health by it, and see `FailureShare`."""
        self.succeeded_at = max(self.succeeded_at, started)
        if started >= self.refused_at:
            self._refusals.clear()
        self._failures = 0
        tick = self.share.good(now)
        if self.phase is Phase.HEALTHY or started < self._ejected_at:
            return False, tick
        self.unreachable = False
        self._successes += 1
        if self._successes < self._config.probe_successes:
            return False, tick
        self._enter(Phase.HEALTHY, now)
        self.until = inf
        self.reason, self.detail = "recovered", f"{self._successes} requests succeeded"
        return True, tick

    def failed(self, now: float, started: float, *, endpoints: int) -> str | None:
        """Count a failure after connecting; gives the reason for which it should be ejected, if any.

        `endpoints` is how many the cluster has.
        """
        if started < self._since or self.phase is Phase.EJECTED:
            return None
        if self.phase is Phase.HALF_OPEN:
            return self._found("probe_failed", "a request failed that was to show its health")
        self._failures += 1
        self.share.bad(now)
        if self._failures >= (self._config.consecutive_failures or (3 if endpoints >= _LARGE else 5)):
            return self._found("failures", f"{self._failures} failures in a row")
        return self._share_found(now)

    def refused(self, now: float, started: float) -> str | None:
        """Count a failure to connect; as `failed`."""
        self.refused_at = now
        self.tried_at = max(self.tried_at, started)
        if started < self._since:
            return None
        recent = [at for at in self._refusals if at > now - self._config.connect_window_s]
        self._refusals = [*recent, now][-self._config.connect_failures :]
        enough = len(self._refusals) >= self._config.connect_failures
        if self.phase is Phase.EJECTED:
            self.unreachable = self.unreachable or enough
            return None
        if enough or self.phase is Phase.HALF_OPEN:
            return self._found("unreachable", f"connecting failed, times: {len(self._refusals)}")
        self.share.bad(now)
        return self._share_found(now)

    def alive(self, now: float) -> bool:
        """The engine says something; gives whether the endpoint, ejected for its silence, is back by it."""
        if self.phase is Phase.HEALTHY or self.reason != SILENT:
            return False
        self._enter(Phase.HEALTHY, now)
        self.until = inf
        self.reason, self.detail = "recovered", "it sends tokens again"
        return True

    def silent(self, now: float) -> str | None:
        """It sends no token; gives the reason for which it should be ejected, if any."""
        if self.phase is Phase.EJECTED:
            if self.reason == SILENT:
                self.until = max(self.until, now + self._config.max_ejection_s)
            return None
        return self._found(SILENT, "no token came, though requests waited")

    def hear_ejected(self, now: float, reason: str, left_s: float) -> None:
        """Another balancer ejected it; here it is out for as long, and half-open afterwards."""
        self._finding = "found by another balancer"
        self._out(now, reason, left_s)

    def hear_recovered(self, now: float, then: float) -> bool:
        """Another balancer found it in health at `then`; gives whether it returns here by that."""
        if self.phase is Phase.HEALTHY or self._ejected_at > then:
            return False
        self._enter(Phase.HEALTHY, now)
        self.until = inf
        self.unreachable = False
        self.reason, self.detail = "recovered", "found by another balancer"
        return True

    def eject(self, now: float, reason: str) -> None:
        """Eject, for longer than the last time; one that hangs at once for as long as any."""
        if self.phase is Phase.HEALTHY:
            healthy_s = now - self._since
            self._doublings -= min(self._doublings, int(min(healthy_s, 1e9) / _HEALTHY_S))
        config = self._config
        if reason == SILENT:
            duration = config.max_ejection_s  # its probe will hang as long as its client waits
        else:
            duration = min(config.ejection_s * 2.0**self._doublings, config.max_ejection_s)
            self._doublings = min(self._doublings + 1, 30)
        self._out(now, reason, duration * (1 + _JITTER * (2 * self._dice() - 1)))

    def _out(self, now: float, reason: str, duration: float) -> None:
        self._enter(Phase.EJECTED, now)
        self._ejected_at = now
        self.until = now + duration
        self.unreachable = reason == "unreachable"
        self.reason = reason
        self.detail = f"{self._finding}; out for {duration:.0f} s"
        self.share.clear()

    def _share_found(self, now: float) -> str | None:
        bad, total = self.share.counts(now)
        if total < self._config.failure_share_requests or bad < self._config.failure_share * total:
            return None
        return self._found("failure_share", f"{bad} of {total} requests failed")

    def _found(self, reason: str, detail: str) -> str:
        self._finding = detail
        return reason

    def _enter(self, phase: Phase, now: float) -> None:
        self.phase = phase
        self._since = now
