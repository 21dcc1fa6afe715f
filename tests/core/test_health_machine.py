"""Whatever is reported in whatever order, some things always hold."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lb_core.health import IGNORED, SUCCESS, Attempt, Change, Health, HealthConfig, Kind, State, Verdict
from tests.core.build import endpoints
from tests.core.test_health import now_or_never

FAILURE, REFUSED = Verdict(Kind.FAILURE), Verdict(Kind.REFUSED)
VERDICTS = st.sampled_from(
    [SUCCESS, IGNORED, FAILURE, FAILURE, REFUSED, REFUSED, Verdict(Kind.BUSY, 2.0), Verdict(Kind.BUSY, 0.0)]
)
OUT_OF_SERVICE = {"draining", "sleeping"}
PICKS = st.integers(0, 1000)


class HealthMachine(RuleBasedStateMachine):
    """Requests, reports and time in any order."""

    @initialize(count=st.integers(1, 6), fraction=st.floats(0, 1, exclude_max=True))
    def begin(self, count: int, fraction: float) -> None:
        self.now = 0.0
        self.count = count
        self.health = Health(
            HealthConfig(),
            endpoints(count),
            clock=lambda: self.now,
            dice=lambda: fraction,
            on_change=self.changed,
        )
        self.in_flight: dict[str, int] = {}
        self.running: list[tuple[str, Attempt, bool]] = []
        self.refused_at: dict[str, float] = {}
        self.shown = {f"e{number}": "healthy" for number in range(count)}

    def changed(self, change: Change) -> None:
        if change.endpoint is None:
            return
        assert change.before == self.shown[change.endpoint], "every change is told, in order"
        assert change.after != change.before
        assert change.reason
        self.shown[change.endpoint] = change.after
        if change.after == State.EJECTED and change.before in {"healthy", "resting", "stalled", "unhealthy"}:
            present = [name for name in self.shown if self.shown[name] not in OUT_OF_SERVICE]
            assert len(present) > 1, "the only one is never ejected"
            if change.reason != "unreachable":
                ejected = sum(self.shown[name] in {"ejected", "half-open"} for name in present)
                assert ejected <= max(1, len(present) // 2)

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.5, 1.0, 2.0, 10.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(pick=PICKS)
    def request(self, pick: int) -> None:
        eligible = self.health.eligible(self.in_flight)
        names = sorted(eligible.available)
        if not names:
            return
        name = names[pick % len(names)]
        attempt = now_or_never(self.health.admit(name, eligible))
        assert attempt is not None
        self.in_flight[name] = self.in_flight.get(name, 0) + 1
        is_probe = name in eligible.probes
        if is_probe:
            assert not any(probe and other == name for other, _, probe in self.running), "one probe at a time"
            assert now_or_never(self.health.admit(name, eligible)) is None
        self.running.append((name, attempt, is_probe))

    @rule(pick=PICKS, verdict=VERDICTS)
    def end(self, pick: int, verdict: Verdict) -> None:
        if not self.running:
            return
        name, attempt, _ = self.running.pop(pick % len(self.running))
        self.in_flight[name] -= 1
        if verdict.kind is Kind.REFUSED:
            self.refused_at[name] = self.now
        attempt.ended(verdict)
        attempt.ended(verdict)

    @rule(times=st.integers(1, 6), pick=PICKS, verdict=VERDICTS)
    def many(self, times: int, pick: int, verdict: Verdict) -> None:
        for _ in range(times):
            before = len(self.running)
            self.request(pick)
            if len(self.running) > before:
                self.end(before, verdict)

    @rule(pick=PICKS, seen=st.sampled_from(["connected", "content"]))
    def hear(self, pick: int, seen: str) -> None:
        if not self.running:
            return
        index = pick % len(self.running)
        name, attempt, _ = self.running[index]
        getattr(attempt, seen)()
        if seen == "content":
            self.running[index] = name, attempt, False

    @rule(pick=PICKS, flag=st.sampled_from(["stalled", "sleeping", "checked"]), value=st.booleans())
    def tell(self, pick: int, flag: str, value: bool) -> None:
        getattr(self.health, flag)(f"e{pick % self.count}", value)

    @rule(pick=PICKS, drain=st.booleans())
    def drain(self, pick: int, drain: bool) -> None:
        name = f"e{pick % self.count}"
        (self.health.drain if drain else self.health.undrain)(name)

    @rule()
    def nothing_is_for_ever(self) -> None:
        eligible = self.health.eligible(self.in_flight)
        if eligible.available or any(probe for _, _, probe in self.running):
            return
        self.now += 1.001
        in_service = {name for name in self.shown if self.shown[name] not in OUT_OF_SERVICE}
        assert bool(self.health.eligible(self.in_flight).available) is bool(in_service)

    @invariant()
    def what_is_offered_makes_sense(self) -> None:
        eligible = self.health.eligible(self.in_flight)
        assert eligible.available | eligible.out.keys() == self.shown.keys()
        assert not eligible.available & eligible.out.keys()
        assert eligible.probes <= eligible.available
        assert eligible.virtual_loads.keys() <= eligible.available
        assert all(0 < load < 10_000 for load in eligible.virtual_loads.values())
        assert eligible.version == self.health.eligible(self.in_flight).version
        assert not any(self.shown[name] in OUT_OF_SERVICE for name in eligible.available)
        if self.count == 1 and self.shown["e0"] not in OUT_OF_SERVICE:
            assert eligible.available == {"e0"}
        if eligible.panic:
            offered = eligible.available - eligible.probes
            refused = {name for name in offered if self.now - self.refused_at.get(name, -9.0) < 2}
            assert refused in (set(), offered), "one that refused just now, though there was another"


HealthMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHealth: Any = HealthMachine.TestCase
