"""Health with least request over minutes of simulated traffic: what clients would notice."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from lb_core.health import SUCCESS, Attempt, Change, Health, HealthConfig, Kind, State, Verdict
from lb_core.stores.placement import place
from lb_core.types import Choice, Decision, Tier
from tests.core.build import endpoints
from tests.core.test_health import now_or_never

FAILURE, REFUSED = Verdict(Kind.FAILURE), Verdict(Kind.REFUSED)


@dataclass(frozen=True)
class Plan:
    """How an engine treats one request: how it ends, after how long, and when content begins."""

    verdict: Verdict
    total_s: float
    content_s: float | None = None
    connect_s: float | None = 0.0
    """None: never."""


type Engine = Callable[[float], Plan]


class Simulation:
    """Requests come evenly; each goes to the least loaded endpoint, after refusals to up to three others."""

    def __init__(self, count: int, *, seed: int = 0, mean_s: float = 8.0) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.members = {member.name: member for member in endpoints(count)}
        self.engines: dict[str, Engine] = dict.fromkeys(self.members, self.good(mean_s))
        self.changes: list[tuple[float, Change]] = []
        self.in_flight: Counter[str] = Counter()
        self.health = Health(
            HealthConfig(),
            self.members.values(),
            clock=lambda: self.now,
            dice=self.random.random,
            on_change=lambda change: self.changes.append((self.now, change)),
        )
        self.answers: list[tuple[float, bool]] = []
        """When each client heard the last of it, and whether it went well."""
        self.attempts: list[tuple[float, str]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def run(self, seconds: float, *, rate: float) -> None:
        begin = self.now
        for number in itertools.count(1):
            arrival = min(begin + number / rate, begin + seconds)
            while self._events and self._events[0][0] <= arrival:
                self.now, _, do = heapq.heappop(self._events)
                do()
            self.now = arrival
            if number > seconds * rate:
                return
            self._request(frozenset())

    def failed(self, since: float = 0) -> float:
        """The share of clients that got no good answer."""
        told = [good for when, good in self.answers if when >= since]
        return told.count(False) / len(told)

    def picks(self, name: str, begin: float, end: float) -> int:
        return sum(begin <= when < end and chosen == name for when, chosen in self.attempts)

    def most_in_a_second(self, name: str, begin: float, end: float) -> int:
        times = [when for when, chosen in self.attempts if chosen == name and begin <= when < end]
        return max((sum(0 <= other - when < 1 for other in times) for when in times), default=0)

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), do))

    def _request(self, tried: frozenset[str]) -> None:
        eligible = self.health.eligible(self.in_flight)
        choices = tuple(
            Choice(self.members[name], virtual_load=eligible.virtual_loads.get(name, 0.0))
            for name in sorted(eligible.available - tried)
        )
        decision = Decision("least_request", (Tier(choices, "least_request"),))
        placed = place(decision, self.in_flight, self.random.random())
        if placed is None or len(tried) > 3:
            self.answers.append((self.now, False))
            return
        name = placed[1].endpoint.name
        attempt = now_or_never(self.health.admit(name, eligible))
        assert attempt is not None, "nothing comes between asking and admitting"
        self._send(name, attempt, tried | {name})

    def _send(self, name: str, attempt: Attempt, tried: frozenset[str]) -> None:
        self.in_flight[name] += 1
        self.attempts.append((self.now, name))
        plan = self.engines[name](self.now)

        def end() -> None:
            self.in_flight[name] -= 1
            attempt.ended(plan.verdict)
            if plan.verdict.kind is Kind.REFUSED:
                self._request(tried)
            else:
                self.answers.append((self.now, plan.verdict.kind is Kind.SUCCESS))

        if plan.connect_s is not None:
            self._after(plan.connect_s, attempt.connected)
        if plan.content_s is not None:
            self._after(plan.content_s, attempt.content)
        self._after(plan.total_s, end)

    def good(self, mean_s: float) -> Engine:
        """A healthy engine: content after a tenth of a duration that varies widely."""

        def engine(now: float) -> Plan:
            total_s = self.random.expovariate(1 / mean_s)
            return Plan(SUCCESS, total_s, total_s / 10)

        return engine


def refusing(now: float) -> Plan:
    return Plan(REFUSED, 0.001, connect_s=None)


def black_hole(now: float) -> Plan:
    return Plan(REFUSED, 1.0, connect_s=None)


def failing_fast(now: float) -> Plan:
    return Plan(FAILURE, 0.005)


@pytest.mark.parametrize(("rate", "seed"), [(2, 0), (8, 1), (8, 2), (40, 3)])
def test_h16_one_of_four_that_fails_fast_costs_less_than_one_request_in_a_hundred(
    rate: float, seed: int
) -> None:
    simulation = Simulation(4, seed=seed)
    simulation.run(60, rate=rate)
    simulation.engines["e0"] = failing_fast
    simulation.run(600, rate=rate)
    assert simulation.failed(since=60) < 0.01


@pytest.mark.parametrize("seed", range(2))
def test_no_request_is_lost_to_one_of_four_that_refuses_and_few_wait(seed: int) -> None:
    simulation = Simulation(4, seed=seed)
    simulation.run(60, rate=20)
    simulation.engines["e0"] = black_hole
    simulation.run(60, rate=20)
    assert simulation.failed() == 0
    assert simulation.picks("e0", 60, 120) <= 2 + 20 + 3


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bad", [refusing, failing_fast])
def test_an_endpoint_that_flaps_every_second_gets_less_than_a_tenth_of_its_share(
    bad: Engine, seed: int
) -> None:
    simulation = Simulation(4, seed=seed, mean_s=4.0)
    good = simulation.good(4.0)

    def flapping(now: float) -> Plan:
        if int(now) % 2:
            return bad(now)
        plan = good(now)
        left_s = 1 - now % 1
        return plan if plan.total_s < left_s else Plan(FAILURE, left_s, plan.total_s / 10)

    simulation.engines["e0"] = flapping
    simulation.run(600, rate=8)
    assert simulation.picks("e0", 0, 600) < 0.1 * 600 * 8 / 4


@pytest.mark.parametrize(("rate", "seed"), [(16, 0), (16, 1), (40, 2)])
def test_a_returning_endpoint_is_not_flooded(rate: float, seed: int) -> None:
    simulation = Simulation(4, seed=seed)
    good = simulation.engines["e0"]
    simulation.engines["e0"] = refusing
    simulation.run(120, rate=rate)
    simulation.engines["e0"] = good
    simulation.run(240, rate=rate)
    back = next(when for when, change in simulation.changes if change.after == State.HEALTHY)
    fair = rate / 4
    # Ten seconds, since an endpoint that carries its whole share has seconds of twice its share, too.
    spans = [simulation.picks("e0", back + at, back + at + 10) / 10 / fair for at in range(50)]
    assert simulation.most_in_a_second("e0", back, back + 10) <= 1.5 * fair
    assert max(spans) <= 1.5


def test_long_prefills_and_long_streams_are_never_taken_for_faults() -> None:
    simulation = Simulation(4)

    def slow(now: float) -> Plan:
        return Plan(SUCCESS, 1800.0, 120.0)

    simulation.engines.update(e0=slow, e1=slow)
    simulation.run(3600, rate=2)
    assert not simulation.changes
    assert simulation.failed() == 0


@pytest.mark.parametrize("bad", [refusing, black_hole])
def test_all_down_is_told_at_once_and_the_first_success_comes_within_two_seconds(bad: Engine) -> None:
    simulation = Simulation(4, mean_s=0.2)
    good = simulation.engines["e0"]
    simulation.engines = dict.fromkeys(simulation.members, bad)
    simulation.run(300, rate=20)
    before = len(simulation.attempts)
    simulation.run(10, rate=20)
    assert (len(simulation.attempts) - before) / 10 <= 4.1
    for trial in range(20):
        simulation.engines["e2"] = good
        returned = simulation.now
        simulation.run(3, rate=20)
        first = next(when for when, well in simulation.answers if well and when > returned)
        assert first - returned < 2
        simulation.engines["e2"] = bad
        simulation.run(5 + trial * 1.37, rate=20)


def test_the_only_endpoint_is_asked_however_often_it_fails() -> None:
    simulation = Simulation(1)
    simulation.engines["e0"] = failing_fast
    simulation.run(100, rate=1)
    assert simulation.picks("e0", 0, 101) == 100


def test_an_endpoint_that_is_full_rests_and_no_request_is_sent_to_it_meanwhile() -> None:
    simulation = Simulation(2)
    simulation.engines["e0"] = lambda now: Plan(Verdict(Kind.BUSY, 5.0), 0.01)
    simulation.run(60, rate=10)
    assert simulation.picks("e0", 0, 60) <= 60 / 5 + 1
