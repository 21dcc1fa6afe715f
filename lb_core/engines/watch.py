"""What pages tell about an engine's health: asleep, stalled, restarted. Pure: time comes with the pages."""

import enum
from dataclasses import dataclass
from math import inf

from lb_core.engines.model import EngineMetrics

STALL_WINDOW_S = 60.0
STALL_WINDOWS = 2
"""An engine that has work and makes no step for so many windows in a row is stalled: the one sign of a hang
that a long prefill does not give too (`/health` stays 200, vLLM issues 36451 and 39863)."""


class Change(enum.StrEnum):
    """What became of an engine."""

    ASLEEP = "asleep"
    """Its weights are put away, and with them its KV cache."""
    AWAKE = "awake"
    STALLED = "stalled"
    MOVING = "moving"
    """It makes steps again, or has nothing to do."""
    RESTARTED = "restarted"
    """Its counters fell: what it had cached is gone."""


@dataclass(frozen=True, slots=True)
class _Pulse:
    """Any of it differs as soon as an engine works. A long prefill makes no token but fills blocks."""

    progress: float
    generated_tokens: float | None
    kv_usage: float | None


class Watch:
    """One engine's health, page by page. A verdict stands until a page says otherwise, or it lapses."""

    def __init__(self, *, window_s: float = STALL_WINDOW_S, windows: int = STALL_WINDOWS) -> None:
        self.asleep = False
        self.stalled = False
        self.stepped = False
        """Between the last two pages it did something."""
        self._sleep_told_at = -inf
        self._steps_told_at = -inf
        self._window_s = window_s
        self._windows = windows
        self._pulse: _Pulse | None = None
        self._since = 0.0
        self._still = 0
        self._dialect: str | None = None
        self._counters: dict[str, float] = {}

    def observe(self, metrics: EngineMetrics, in_flight: int = 0) -> tuple[Change, ...]:
        """Tell what changed. `in_flight` are own requests that the engine has had for longer than this page.

        They count as work: a vLLM whose worker hangs reports that nothing runs.
        """
        changes = []
        sleeping = self.asleep if metrics.sleeping is None else metrics.sleeping
        if metrics.sleeping is not None:
            self._sleep_told_at = metrics.at
        if restarted := self._restarted(metrics):
            changes.append(Change.RESTARTED)
            self._pulse = None
            sleeping = metrics.sleeping or False
        if sleeping is not self.asleep:
            self.asleep = sleeping
            changes.append(Change.ASLEEP if self.asleep else Change.AWAKE)
        stalled = self._stalls(metrics, in_flight) and not restarted
        if stalled != self.stalled:
            self.stalled = stalled
            changes.append(Change.STALLED if stalled else Change.MOVING)
        return tuple(changes)

    def lapse(self, before: float) -> tuple[Change, ...]:
        """Take back what was last said before that time. The next page that says it again brings it back."""
        changes = []
        if self.asleep and self._sleep_told_at < before:
            self.asleep = False
            changes.append(Change.AWAKE)
        if self.stalled and self._steps_told_at < before:
            self.stalled = False
            changes.append(Change.MOVING)
        return tuple(changes)

    def _restarted(self, metrics: EngineMetrics) -> bool:
        counters = {
            name: value
            for name in ("generated_tokens", "progress", "prefix_hits", "prefix_queries")
            if (value := getattr(metrics, name)) is not None
        }
        fell = any(value < self._counters.get(name, 0.0) for name, value in counters.items())
        other = self._dialect is not None and metrics.dialect not in {None, self._dialect}
        if fell or other:
            self._counters.clear()
        self._counters |= counters
        self._dialect = metrics.dialect or self._dialect
        return fell or other

    def _stalls(self, metrics: EngineMetrics, in_flight: int) -> bool:
        self.stepped = False
        if metrics.progress is None:  # no verdict; what is not known ends nothing and begins nothing
            return self.stalled
        self._steps_told_at = metrics.at
        pulse = _Pulse(metrics.progress, metrics.generated_tokens, metrics.kv_usage)
        self.stepped = self._pulse is not None and pulse != self._pulse
        working = (metrics.running or 0) > 0 or in_flight > 0
        if not working or self.asleep or pulse != self._pulse:
            self._pulse, self._since, self._still = pulse, metrics.at, 0
            return False
        if metrics.at - self._since >= self._window_s:
            self._since = metrics.at
            self._still += 1
        return self._still >= self._windows
