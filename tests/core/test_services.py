"""What is remembered of services, and what a route then does with it, in simulated time."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.services import RECENT_CHOICES, Service, ServiceBoard
from lb_core.types import Ending, Outcome
from tests.core.build import Clock, request

type Mode = Literal["LeastBusy", "LeastTotalLatency", "LeastFirstTokenLatency"]
LATENCY_MODES: tuple[Mode, ...] = ("LeastTotalLatency", "LeastFirstTokenLatency")
GOLDEN = 0.6180339887498949
GOOD = Outcome(Ending.COMPLETE, 200, duration_s=2.0)
FAILED = Outcome(Ending.UPSTREAM_FAILED, error="connect failed")


def board(
    names: str = "ab", *, queue_size: int = 100, ttl_s: float = 60.0, clock: Clock | None = None
) -> ServiceBoard:
    return ServiceBoard(names, queue_size=queue_size, sample_ttl_s=ttl_s, clock=clock or Clock())


def seen(on: ServiceBoard, name: str) -> Service:
    return next(service for service in on.view({}) if service.name == name)


def place(on: ServiceBoard, name: str, request_id: str = "r") -> None:
    with on.placing(name, request_id):
        pass


def serve(on: ServiceBoard, name: str, outcome: Outcome = GOOD, request_id: str = "r") -> None:
    place(on, name, request_id)
    on.finished(name, request_id, outcome)


class Route:
    """Requests that come at a steady rate to services whose speed is a function of the request's number."""

    def __init__(
        self,
        policy: ClusterMetrics,
        outcome: Callable[[str, int], Outcome],
        *,
        per_second: float = 10.0,
    ) -> None:
        self.clock = Clock()
        self.policy = policy
        self.board = ServiceBoard(
            policy.service_list,
            queue_size=policy.queue_size,
            sample_ttl_s=policy.sample_ttl,
            clock=self.clock,
        )
        self.in_flight: Counter[str] = Counter()
        self.chosen: list[str] = []
        self._outcome = outcome
        self._gap_s = 1 / per_second
        self._running: list[tuple[float, int, str, Outcome]] = []

    def run(self, number: int) -> list[str]:
        """Let `number` requests come; give the services that they were placed at."""
        before = len(self.chosen)
        for _ in range(number):
            self.clock.now += self._gap_s
            self._end_until(self.clock.now)
            turn = len(self.chosen)
            services = self.board.view(self.in_flight)
            name = self.policy.choose(request(number=turn, tie=turn * GOLDEN % 1), services).choices[0].name
            place(self.board, name, f"r{turn}")
            self.in_flight[name] += 1
            self.chosen.append(name)
            outcome = self._outcome(name, turn)
            ends = self.clock.now + (outcome.duration_s or 0.0)
            heapq.heappush(self._running, (ends, turn, name, outcome))
        return self.chosen[before:]

    def _end_until(self, now: float) -> None:
        while self._running and self._running[0][0] <= now:
            _, turn, name, outcome = heapq.heappop(self._running)
            self.in_flight[name] -= 1
            self.board.finished(name, f"r{turn}", outcome)


def swapping(
    after: int, *, fast_s: float, slow_s: float, streams: bool, seed: int
) -> Callable[[str, int], Outcome]:
    """`a` is the fast one for `after` requests, then `b`; a fifth of noise on both."""
    noise = random.Random(seed)

    def outcome(name: str, turn: int) -> Outcome:
        is_fast = (name == "a") == (turn < after)
        seconds = (fast_s if is_fast else slow_s) * noise.uniform(0.8, 1.2)
        if streams:
            return replace(GOOD, ttft_s=seconds, duration_s=seconds * 3)
        return replace(GOOD, duration_s=seconds)

    return outcome


@pytest.mark.parametrize("mode", LATENCY_MODES)
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("fast_s", "slow_s", "per_second"), [(0.1, 1.0, 10), (0.8, 1.6, 10), (1.0, 6.0, 4), (0.02, 0.03, 100)]
)
def test_the_share_follows_when_two_services_swap_their_speeds(
    mode: Mode, streams: bool, fast_s: float, slow_s: float, per_second: float
) -> None:
    for seed in range(3):
        policy = ClusterMetrics(mode, ("a", "b"))
        outcome = swapping(500, fast_s=fast_s, slow_s=slow_s, streams=streams, seed=seed)
        route = Route(policy, outcome, per_second=per_second)
        assert route.run(500)[-200:].count("a") >= 190
        after = route.run(2 * policy.queue_size + 100)
        assert after[-100:].count("b") >= 95, f"seed {seed}"


def test_a_service_that_becomes_faster_is_found_although_the_preferred_one_stays_as_it_is() -> None:
    def outcome(name: str, turn: int) -> Outcome:
        return replace(GOOD, duration_s=1.0 if name == "a" else 2.0 if turn < 300 else 0.5)

    route = Route(ClusterMetrics("LeastTotalLatency", ("a", "b")), outcome)
    assert route.run(300)[-200:].count("a") >= 195
    assert route.run(300)[-100:].count("b") >= 95


def test_first_token_goes_by_the_first_content_and_total_by_the_end() -> None:
    def outcome(name: str, _turn: int) -> Outcome:
        ttft_s, duration_s = {"a": (0.1, 3.0), "b": (0.5, 1.0)}[name]
        return replace(GOOD, ttft_s=ttft_s, duration_s=duration_s)

    for mode, winner in (("LeastFirstTokenLatency", "a"), ("LeastTotalLatency", "b")):
        route = Route(ClusterMetrics(mode, ("a", "b")), outcome)  # type: ignore[arg-type]
        assert route.run(300)[-200:].count(winner) >= 195


@pytest.mark.parametrize("count", [2, 4, 12])
def test_finding_out_takes_one_request_in_queue_size_however_many_services(count: int) -> None:
    names = tuple(f"s{number}" for number in range(count))

    def outcome(name: str, _turn: int) -> Outcome:
        return replace(GOOD, duration_s=0.2 if name == "s0" else 0.4)

    route = Route(ClusterMetrics("LeastTotalLatency", names), outcome, per_second=100)
    route.run(100)
    assert 5000 * 0.98 <= route.run(5000).count("s0") <= 5000 * 0.995


@pytest.mark.parametrize("mode", ["LeastBusy", *LATENCY_MODES])
@pytest.mark.parametrize("rate_limit", [0.5, 0.6, 0.9])
def test_no_service_gets_more_than_its_share_in_any_window(mode: Mode, rate_limit: float) -> None:
    def outcome(name: str, turn: int) -> Outcome:
        return replace(GOOD, duration_s={"a": 0.01, "b": 0.5, "c": 2.0}[name] * (1 + turn % 3))

    route = Route(ClusterMetrics(mode, ("a", "b", "c"), rate_limit), outcome, per_second=50)
    chosen = route.run(10_000)
    for name in "abc":
        count = chosen[:100].count(name)
        for end in range(100, len(chosen) + 1):
            assert count <= rate_limit * 100 + 1
            if end < len(chosen):
                count += (chosen[end] == name) - (chosen[end - 100] == name)
    if mode != "LeastBusy":
        assert chosen.count("a") >= (rate_limit - 0.02) * 10_000


def test_a_limit_refuses_nothing_when_a_service_is_alone_and_splits_evenly_when_all_reach_it() -> None:
    alone = Route(ClusterMetrics("LeastTotalLatency", ("a",), 0.6), lambda _name, _turn: GOOD)
    assert alone.run(1000) == ["a"] * 1000
    both = Route(ClusterMetrics("LeastTotalLatency", ("a", "b"), 0.1), lambda _name, _turn: GOOD)
    assert both.run(1000).count("a") == pytest.approx(500, abs=2)


@pytest.mark.parametrize("mode", LATENCY_MODES)
def test_h15_a_service_without_samples_does_not_always_win(mode: Mode) -> None:
    """Higress: latency 0 for it, so 50 requests at once all go there."""
    route = Route(ClusterMetrics(mode, ("known", "new")), lambda _name, _turn: GOOD, per_second=1e6)
    serve(route.board, "known")
    assert Counter(route.run(50)) == {"known": 49, "new": 1}


@pytest.mark.parametrize("mode", LATENCY_MODES)
def test_h15_where_nothing_is_known_a_burst_spreads_by_load(mode: Mode) -> None:
    route = Route(ClusterMetrics(mode, ("a", "b")), lambda _name, _turn: GOOD, per_second=1e6)
    assert Counter(route.run(50)) == {"a": 25, "b": 25}


def test_a_burst_is_counted_before_the_store_has_its_slots() -> None:
    on, policy = board(), ClusterMetrics("LeastBusy", ("a", "b"))
    waiting = []
    for number in range(50):
        name = policy.choose(request(tie=number * GOLDEN % 1), on.view({})).choices[0].name
        context = on.placing(name, f"r{number}")
        context.__enter__()
        waiting.append(context)
    assert [service.in_flight for service in on.view({"a": 3})] == [28, 25]
    for context in waiting:
        context.__exit__(None, None, None)
    assert [service.in_flight for service in on.view({})] == [0, 0]


def test_h15_a_service_that_was_slow_is_tried_again_by_one_request() -> None:
    """Higress: a slow service is never tried again."""

    def outcome(name: str, turn: int) -> Outcome:
        return replace(GOOD, duration_s=3.0 if name == "b" and turn < 50 else 0.1 if name == "b" else 1.0)

    route = Route(ClusterMetrics("LeastTotalLatency", ("a", "b"), sample_ttl=60), outcome, per_second=1)
    assert route.run(50)[5:] == ["a"] * 45
    later = route.run(40)
    first = later.index("b")
    assert first <= 20, "60 s after its sample"
    assert later[first + 1 :].count("a") <= 1


def test_h15_the_state_decays_and_an_old_time_says_nothing() -> None:
    clock = Clock()
    on = board(clock=clock)
    serve(on, "a")
    clock.now += 59.9
    assert (seen(on, "a").samples, seen(on, "a").probe_due) == (1, False)
    clock.now += 0.2
    assert (seen(on, "a").samples, seen(on, "a").mean_total_s, seen(on, "a").probe_due) == (0, None, True)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429])
@pytest.mark.parametrize("ending", [Ending.COMPLETE, Ending.UPSTREAM_FAILED])
def test_h15_what_the_client_asked_wrong_is_neither_failure_nor_sample(status: int, ending: Ending) -> None:
    on = board()
    serve(on, "a", Outcome(ending, status, duration_s=0.001))
    assert (seen(on, "a").samples, seen(on, "a").punished) == (0, 0)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Ending.COMPLETE, 500, duration_s=0.1),
        Outcome(Ending.COMPLETE, 503, duration_s=0.1),
        Outcome(Ending.UPSTREAM_FAILED),  # no status was seen; Higress panics
        Outcome(Ending.UPSTREAM_FAILED, 200, ttft_s=0.1, duration_s=0.2),
        Outcome(Ending.COMPLETE, 200, duration_s=0.1, error="503"),
        Outcome(Ending.COMPLETE, 200, duration_s=0.1, error="overloaded_error"),
        Outcome(Ending.COMPLETE, 200, duration_s=0.1, error="InternalServerError"),
    ],
)
def test_h15_only_failures_of_the_service_are_punished(outcome: Outcome) -> None:
    on = board()
    serve(on, "a", outcome)
    assert (seen(on, "a").samples, seen(on, "a").punished) == (0, 1)
    assert not seen(on, "a").probe_due


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(Ending.CLIENT_LEFT, 200, ttft_s=0.1, duration_s=0.2),
        Outcome(Ending.CLIENT_LEFT),
        Outcome(Ending.TIMED_OUT, 200, duration_s=0.2),
        Outcome(Ending.ABANDONED, 200, duration_s=0.2),
        Outcome(Ending.COMPLETE),
        Outcome(Ending.COMPLETE, 200),
        Outcome(Ending.COMPLETE, 302, duration_s=0.1),
        Outcome(Ending.COMPLETE, 200, duration_s=-1.0),
        Outcome(Ending.COMPLETE, 200, duration_s=float("nan")),
        Outcome(Ending.COMPLETE, 200, ttft_s=float("inf"), duration_s=0.1),
        Outcome(Ending.COMPLETE, 200, duration_s=0.1, error="400"),
        Outcome(Ending.COMPLETE, 200, duration_s=0.1, error="invalid_request_error"),
        Outcome(Ending.COMPLETE, 200, duration_s=0.1, error="rate_limit_error"),
    ],
)
def test_an_ending_that_says_nothing_about_the_service_is_no_sample(outcome: Outcome) -> None:
    on = board()
    serve(on, "a", outcome)
    assert (seen(on, "a").samples, seen(on, "a").punished) == (0, 0)


def test_the_time_to_first_content_is_the_whole_time_where_there_was_no_stream() -> None:
    on = board()
    serve(on, "a", replace(GOOD, duration_s=4.0))
    serve(on, "a", replace(GOOD, ttft_s=1.0, duration_s=2.0))
    assert (seen(on, "a").mean_total_s, seen(on, "a").mean_first_s) == (3.0, 2.5)


def test_the_mean_is_over_the_latest_queue_size_samples() -> None:
    on = board(queue_size=3)
    for seconds in (100.0, 1.0, 2.0, 3.0):
        serve(on, "a", replace(GOOD, duration_s=seconds))
    assert (seen(on, "a").mean_total_s, seen(on, "a").samples) == (2.0, 3)
    serve(on, "a", FAILED)
    assert (seen(on, "a").mean_total_s, seen(on, "a").samples, seen(on, "a").punished) == (2.5, 2, 1)


def test_a_probe_that_brings_no_sample_is_repeated_later_and_not_at_once() -> None:
    on = board(queue_size=10)
    serve(on, "a", Outcome(Ending.CLIENT_LEFT), "probe")
    assert not seen(on, "a").probe_due
    for number in range(10):
        assert not seen(on, "a").probe_due
        serve(on, "b", request_id=f"r{number}")
    assert seen(on, "a").probe_due


def test_a_service_that_answers_everything_with_401_draws_no_traffic() -> None:
    def outcome(name: str, _turn: int) -> Outcome:
        return GOOD if name == "a" else Outcome(Ending.COMPLETE, 401, duration_s=0.001)

    route = Route(ClusterMetrics("LeastTotalLatency", ("a", "b")), outcome)
    route.run(100)
    assert route.run(2000).count("b") <= 25


def test_a_service_that_only_fails_is_tried_once_in_sample_ttl() -> None:
    def outcome(name: str, _turn: int) -> Outcome:
        return GOOD if name == "a" else FAILED

    route = Route(ClusterMetrics("LeastTotalLatency", ("a", "b")), outcome)
    assert route.run(6000).count("b") == pytest.approx(10, abs=1), "10 minutes"


def test_a_probe_that_never_returns_is_given_up() -> None:
    clock = Clock()
    on = board(clock=clock)
    place(on, "a", "lost")
    for _ in range(500):
        serve(on, "b")
    assert not seen(on, "a").probe_due
    clock.now += 60
    assert seen(on, "a").probe_due
    place(on, "a", "second")
    on.finished("a", "lost", Outcome(Ending.ABANDONED))
    for _ in range(500):
        serve(on, "b")
    assert not seen(on, "a").probe_due, "the second one is still out"


def test_a_probe_that_finds_no_place_is_due_again_at_once_and_was_no_choice() -> None:
    on = board()
    looking = on.placing("a", "r")
    looking.__enter__()
    assert seen(on, "a") == Service("a", in_flight=1, share=1.0)
    assert not looking.__exit__(LookupError, LookupError(), None)
    assert seen(on, "a") == Service("a", probe_due=True)


def test_a_request_that_is_no_probe_leaves_the_probe_alone_when_it_finds_no_place() -> None:
    on = board()
    place(on, "a", "probe")
    with pytest.raises(LookupError), on.placing("a", "other"):
        raise LookupError
    assert (seen(on, "a").probe_due, seen(on, "a").share) == (False, 1.0)


def test_shares_are_those_of_the_latest_choices() -> None:
    on = board()
    for _ in range(RECENT_CHOICES):
        place(on, "a")
    for _ in range(25):
        place(on, "b")
    assert (seen(on, "a").share, seen(on, "b").share) == (0.75, 0.25)


def test_a_name_that_is_no_service_is_ignored_at_the_end_and_a_fault_at_the_start() -> None:
    on = board()
    on.finished("gone", "r", GOOD)
    with pytest.raises(KeyError), on.placing("gone", "r"):
        pass


outcomes = st.builds(
    Outcome,
    ending=st.sampled_from(Ending),
    status=st.none() | st.integers(100, 599),
    ttft_s=st.none() | st.floats(),
    duration_s=st.none() | st.floats(),
    error=st.none() | st.sampled_from(["503", "400", "overloaded_error", "٥٠٣", ""]),
)
events = st.tuples(
    st.sampled_from(["place", "refuse", "finish", "wait"]),
    st.sampled_from("abc"),
    st.integers(0, 5).map(str),
    outcomes,
    st.floats(0, 50),
)


@given(
    happened=st.lists(events, max_size=60),
    queue_size=st.integers(1, 5),
    mode=st.sampled_from(["LeastBusy", *LATENCY_MODES]),
    rate_limit=st.floats(0, 1),
)
@settings(deadline=None)
def test_whatever_happens_nothing_raises_and_nothing_grows(
    happened: list[tuple[str, str, str, Outcome, float]], queue_size: int, mode: Mode, rate_limit: float
) -> None:
    clock = Clock()
    on = board("abc", queue_size=queue_size, clock=clock)
    policy = ClusterMetrics(mode, tuple("abc"), rate_limit)
    for kind, name, request_id, outcome, seconds in happened:
        if kind == "place":
            place(on, name, request_id)
        elif kind == "refuse":
            with pytest.raises(LookupError), on.placing(name, request_id):
                raise LookupError
        elif kind == "finish":
            on.finished(name, request_id, outcome)
        else:
            clock.now += seconds
        services = on.view({})
        assert [service.name for service in services] == list("abc")
        for service in services:
            assert 0 <= service.samples + service.punished <= queue_size
            assert service.in_flight == 0
            assert (service.samples > 0) == (service.mean_total_s is not None)
            assert service.mean_total_s is None or service.mean_total_s >= 0
            assert not (service.probe_due and service.samples + service.punished)
        assert sum(service.share for service in services) in (0, pytest.approx(1))
        decision = policy.choose(request(), services)
        assert {choice.name for choice in decision.choices} == set("abc")


def test_memory_stays_within_queue_size_and_the_window() -> None:
    on = board(queue_size=50)
    for number in range(20_000):
        serve(on, "ab"[number % 2], GOOD if number % 3 else FAILED, f"r{number}")
    kept = [len(record.samples) for record in on._records.values()]
    assert kept == [50, 50]
    assert len(on._recent) == RECENT_CHOICES
