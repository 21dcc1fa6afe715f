"""What is known of the health of one endpoint."""

import enum
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from lb_core.health.config import ChecksConfig, HealthConfig
from lb_core.health.outlier import Outlier, Phase
from lb_core.health.silence import Silence
from lb_core.types import Endpoint

REFUSED_RECENTLY_S = 2.0
"""An endpoint that refused within this time is the last to be chosen, in a panic too."""
RETRY_REFUSED_S = 1.0
"""While there is nothing else, an endpoint that refuses is tried so often, by one request at a time; so
the first success comes within 2 s after one returns."""
DENIED_S = 1.0
"""So long after another balancer was found to probe an endpoint, it is not asked again."""

_MOST_GHOSTS = 256


class State(enum.StrEnum):
    """How an endpoint is, seen from outside; of several that apply, the first."""

    DRAINING = "draining"
    SLEEPING = "sleeping"
    EJECTED = "ejected"
    HALF_OPEN = "half-open"
    STALLED = "stalled"
    UNHEALTHY = "unhealthy"
    """Active checks fail."""
    RESTING = "resting"
    HEALTHY = "healthy"


@dataclass(frozen=True, slots=True)
class Change:
    """An endpoint went from one state to another; or the cluster (`endpoint` None), into panic or out."""

    endpoint: str | None
    before: str
    after: str
    reason: str
    """A fixed word."""
    detail: str = ""


class Member:
    """Everything about one endpoint; `Health` decides what follows from it."""

    def __init__(self, endpoint: Endpoint, config: HealthConfig, dice: Callable[[], float]) -> None:
        self.name = endpoint.name
        self.weight = endpoint.weight
        self.outlier = Outlier(config, dice)
        self.silence = Silence()
        self.draining = self.configured_draining = endpoint.draining
        self.sleeping = False
        self.stalled = False
        self.failing_checks = False
        self.resting_until = -inf
        self.ramp_from = -inf
        """When the slow start began."""
        self.probe: object | None = None
        """The attempt that is the probe, while one is under way."""
        self.denied_until = -inf
        self.ghosts: deque[float] = deque(maxlen=_MOST_GHOSTS)
        """When the failures of late cease to count as load; about in order."""
        self.shown = State.HEALTHY
        self.quiet = not endpoint.draining
        """In health, and nothing about it changes by time alone: it need not be looked at."""
        self._checks_in_a_row = 0

    def state(self, now: float) -> State:
        """What to tell people."""
        if self.draining:
            return State.DRAINING
        if self.sleeping:
            return State.SLEEPING
        if self.outlier.phase is not Phase.HEALTHY:
            return State(self.outlier.phase.value)
        if self.stalled:
            return State.STALLED
        if self.failing_checks:
            return State.UNHEALTHY
        return State.RESTING if self.resting(now) else State.HEALTHY

    @property
    def present(self) -> bool:
        """False where nothing may be sent, whatever the need."""
        return not self.draining and not self.sleeping

    @property
    def sound(self) -> bool:
        """In health; it may still be resting."""
        return self.outlier.phase is Phase.HEALTHY and not self.stalled and not self.failing_checks

    def resting(self, now: float) -> bool:
        """It is busy and wants to be left alone."""
        return now < self.resting_until

    def refused_recently(self, now: float) -> bool:
        """It failed to connect within the last 2 s."""
        return now - self.outlier.refused_at < REFUSED_RECENTLY_S

    def probeable(self, now: float) -> bool:
        """Half-open, and the next request may be its probe."""
        return (
            self.outlier.phase is Phase.HALF_OPEN
            and not self.stalled
            and not self.failing_checks
            and self._probe_free(now)
            and not self.refused_recently(now)
        )

    def retriable(self, now: float) -> bool:
        """It cannot be connected to, but it is time to try again if there is nothing else."""
        return (
            self.outlier.unreachable
            and self._probe_free(now)
            and now - self.outlier.tried_at >= RETRY_REFUSED_S
        )

    def factor(self, now: float, config: HealthConfig) -> float:
        """The share of its load that it should carry: below 1 in slow start."""
        if self.outlier.phase is Phase.HALF_OPEN:
            return config.slow_start_floor
        ramp_s = now - self.ramp_from
        if ramp_s >= config.slow_start_s:
            return 1.0
        return max(config.slow_start_floor, ramp_s / config.slow_start_s)

    def ghost_load(self, now: float) -> int:
        """Failures that still count as load."""
        while self.ghosts and self.ghosts[0] <= now:
            self.ghosts.popleft()
        return len(self.ghosts)

    def checked(self, good: bool, checks: ChecksConfig) -> bool:
        """Count an active check; gives whether it changed anything."""
        if good is (self._checks_in_a_row > 0):
            self._checks_in_a_row += 1 if good else -1
        else:
            self._checks_in_a_row = 1 if good else -1
        if good and self._checks_in_a_row >= checks.rise and self.failing_checks:
            self.failing_checks = False
            return True
        if not good and -self._checks_in_a_row >= checks.fall and not self.failing_checks:
            self.failing_checks = True
            return True
        return False

    def turning_points(self) -> Iterator[float]:
        """The times at which something about it may change by itself."""
        yield self.outlier.until
        yield self.resting_until
        yield self.outlier.refused_at + REFUSED_RECENTLY_S
        yield self.outlier.tried_at + RETRY_REFUSED_S
        yield self.denied_until
        if self.ghosts:
            yield self.ghosts[0]

    def _probe_free(self, now: float) -> bool:
        return self.probe is None and now >= self.denied_until


def change_of(member: Member, before: State) -> Change:
    """Tell how `member` came from `before` to the state that it shows."""
    after = member.shown
    outlier = member.outlier
    if after is State.EJECTED:
        return Change(member.name, before, after, outlier.reason, outlier.detail)
    if after is State.HALF_OPEN:
        return Change(member.name, before, after, "ejection_over", "one request at a time shows its health")
    if before in {State.EJECTED, State.HALF_OPEN} and after is State.HEALTHY:
        return Change(member.name, before, after, outlier.reason, outlier.detail)
    return Change(member.name, before, after, after.name.lower())
