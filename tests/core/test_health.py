"""Who may be given requests, by what is reported."""

import asyncio
from collections.abc import Callable, Coroutine
from math import inf
from timeit import repeat
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from lb_core.health import (
    IGNORED,
    SUCCESS,
    Attempt,
    Change,
    Eligibility,
    Health,
    HealthConfig,
    Kind,
    News,
    State,
    Verdict,
    Work,
)
from lb_core.health.fleet import Fleet
from tests.core.build import endpoint, endpoints

FAILURE, REFUSED = Verdict(Kind.FAILURE), Verdict(Kind.REFUSED)


def now_or_never[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits")


class Rig:
    """A cluster's health, with a clock that stands still unless told, and no jitter."""

    def __init__(
        self,
        count: int,
        config: HealthConfig | None = None,
        *,
        dice: Callable[[], float] = lambda: 0.5,
        fleet: Fleet | None = None,
    ) -> None:
        self.now = 1000.0
        self.changes: list[Change] = []
        self.in_flight: dict[str, int] = {}
        self.health = Health(
            config or HealthConfig(),
            endpoints(count),
            clock=lambda: self.now,
            dice=dice,
            on_change=self.changes.append,
            fleet=fleet,
        )

    def eligible(self, *among: str) -> Eligibility:
        return self.health.eligible(self.in_flight, frozenset(among) if among else None)

    def available(self, *among: str) -> list[str]:
        return sorted(self.eligible(*among).available)

    def admit(self, name: str, work: Work = Work.OTHER) -> Attempt | None:
        return now_or_never(self.health.admit(name, self.eligible(), work))

    def start(self, name: str, work: Work = Work.OTHER) -> Attempt:
        attempt = self.admit(name, work)
        assert attempt is not None
        return attempt

    def report(self, name: str, verdict: Verdict, times: int = 1) -> None:
        for _ in range(times):
            self.start(name).ended(verdict)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.health.tick()

    def said(self, name: str | None) -> list[tuple[str, str]]:
        return [(change.after, change.reason) for change in self.changes if change.endpoint == name]

    def bring_back(self, name: str) -> None:
        self.report(name, SUCCESS, 2)
        assert self.health.states()[name] is State.HEALTHY


# -- ejection -------------------------------------------------------------------------------------


def test_all_are_available_at_first_and_none_is_spared() -> None:
    rig = Rig(4)
    assert rig.available() == ["e0", "e1", "e2", "e3"]
    assert not rig.eligible().virtual_loads
    assert not rig.changes


def test_two_failures_to_connect_within_ten_seconds_eject() -> None:
    rig = Rig(4)
    rig.report("e0", REFUSED)
    rig.wait(9.9)
    assert "e0" in rig.available()
    rig.report("e0", REFUSED)
    assert rig.available() == ["e1", "e2", "e3"]
    assert rig.eligible().out == {"e0": State.EJECTED}
    assert rig.said("e0") == [("ejected", "unreachable")]


def test_two_failures_to_connect_far_apart_do_not_eject() -> None:
    rig = Rig(4)
    for _ in range(10):
        rig.report("e0", REFUSED)
        rig.wait(10.1)
    assert not rig.changes


def test_a_success_between_two_failures_to_connect_tells_them_apart() -> None:
    rig = Rig(4)
    rig.report("e0", REFUSED)
    rig.report("e0", SUCCESS)
    rig.report("e0", REFUSED)
    assert not rig.changes


def test_content_of_a_request_from_before_says_nothing_about_connecting() -> None:
    rig = Rig(4)
    old = rig.start("e0")
    rig.wait(5)
    rig.report("e0", REFUSED)
    old.content()
    rig.report("e0", REFUSED)
    assert rig.said("e0") == [("ejected", "unreachable")]


@pytest.mark.parametrize(("count", "enough"), [(2, 5), (3, 5), (4, 3), (8, 3)])
def test_failures_in_a_row_eject(count: int, enough: int) -> None:
    rig = Rig(count)
    rig.report("e0", FAILURE, enough - 1)
    assert not rig.changes
    rig.report("e0", FAILURE)
    assert rig.said("e0") == [("ejected", "failures")]
    assert "e0" not in rig.available()


def test_the_number_of_failures_in_a_row_can_be_set() -> None:
    rig = Rig(8, HealthConfig(consecutive_failures=7))
    rig.report("e0", FAILURE, 6)
    assert not rig.changes
    rig.report("e0", FAILURE)
    assert rig.said("e0") == [("ejected", "failures")]


def test_a_success_ends_the_row() -> None:
    rig = Rig(4)
    for _ in range(3):
        rig.report("e0", FAILURE, 2)
        rig.report("e0", SUCCESS)
    assert not rig.changes


def test_half_of_ten_requests_failing_ejects() -> None:
    rig = Rig(4)
    for _ in range(4):
        rig.report("e0", SUCCESS)
        rig.report("e0", FAILURE)
        rig.wait(1)
    rig.report("e0", SUCCESS)
    assert not rig.changes
    rig.report("e0", FAILURE)
    assert rig.said("e0") == [("ejected", "failure_share")]


def test_less_than_half_failing_does_not_eject() -> None:
    rig = Rig(4)
    for _ in range(200):
        rig.report("e0", SUCCESS, 2)
        rig.report("e0", FAILURE)
        rig.wait(0.1)
    assert not rig.changes


def test_failures_older_than_the_window_are_forgotten() -> None:
    rig = Rig(4)
    for _ in range(40):
        rig.report("e0", FAILURE)
        rig.report("e0", SUCCESS)
        rig.wait(15)
    assert not rig.changes


def test_failures_are_forgotten_though_nothing_happens_meanwhile() -> None:
    rig = Rig(4)
    for _ in range(4):
        rig.report("e0", FAILURE)
        rig.report("e0", SUCCESS)
    rig.wait(75)
    for verdict in (FAILURE, SUCCESS, FAILURE):
        rig.report("e0", verdict)
    assert not rig.changes


def test_failures_to_connect_count_for_the_share() -> None:
    rig = Rig(4)
    for _ in range(5):
        rig.report("e0", SUCCESS)
        rig.report("e0", REFUSED)
    assert rig.said("e0") == [("ejected", "failure_share")]


def test_streams_that_break_off_count_once_and_as_failures() -> None:
    rig = Rig(4)
    for _ in range(9):
        attempt = rig.start("e0")
        attempt.content()
        attempt.ended(FAILURE)
    assert not rig.changes
    attempt = rig.start("e0")
    attempt.content()
    attempt.ended(FAILURE)
    assert rig.changes[-1].detail.startswith("10 of 10 requests failed")


def test_a_thousand_bad_requests_do_not_eject() -> None:
    rig = Rig(4)
    rig.report("e0", SUCCESS, 1000)  # what judge makes of 400
    assert not rig.changes


def test_ignored_endings_change_nothing() -> None:
    rig = Rig(4)
    rig.report("e0", FAILURE, 2)
    rig.report("e0", IGNORED, 100)
    assert not rig.changes
    rig.report("e0", FAILURE)
    assert rig.said("e0") == [("ejected", "failures")]


def test_an_attempt_ends_once() -> None:
    rig = Rig(4)
    attempt = rig.start("e0")
    for _ in range(5):
        attempt.ended(FAILURE)
    assert not rig.changes


def test_content_after_the_end_says_nothing() -> None:
    rig = ejected()
    rig.wait(10)
    probe = rig.start("e0")
    probe.ended(IGNORED)
    probe.content()
    rig.report("e0", SUCCESS)
    assert rig.health.states()["e0"] is State.HALF_OPEN


def test_the_only_endpoint_is_never_ejected() -> None:
    rig = Rig(1)
    for verdict in (FAILURE, REFUSED):
        rig.report("e0", verdict, 100)
        assert rig.available() == ["e0"]
    assert not rig.changes


@pytest.mark.parametrize(("count", "most"), [(2, 1), (3, 1), (4, 2), (5, 2), (9, 4)])
def test_failures_eject_at_most_half(count: int, most: int) -> None:
    rig = Rig(count)
    for number in range(count):
        rig.report(f"e{number}", FAILURE, 6)
    assert len(rig.eligible().out) == most


def test_a_share_of_zero_ejects_none_for_failures() -> None:
    rig = Rig(4, HealthConfig(max_ejected=0))
    rig.report("e0", FAILURE, 100)
    assert not rig.changes
    rig.report("e0", REFUSED, 2)
    assert rig.said("e0") == [("ejected", "unreachable")]


def test_a_small_share_still_allows_one_of_two() -> None:
    rig = Rig(2, HealthConfig(max_ejected=0.3))
    rig.report("e0", FAILURE, 5)
    assert rig.said("e0") == [("ejected", "failures")]


def test_endpoints_that_drain_do_not_count_for_the_limit() -> None:
    rig = Rig(4)
    for name in ("e1", "e2", "e3"):
        rig.health.drain(name)
    rig.report("e0", FAILURE, 100)
    assert rig.available() == ["e0"]
    assert not rig.said("e0")


# -- the way back ---------------------------------------------------------------------------------


def ejected(count: int = 4, config: HealthConfig | None = None) -> Rig:
    rig = Rig(count, config)
    rig.report("e0", FAILURE, 5 if count < 4 else 3)
    assert rig.health.states()["e0"] is State.EJECTED
    return rig


def test_after_ten_seconds_one_probe_at_a_time_and_two_successes_bring_it_back() -> None:
    rig = ejected()
    rig.wait(9.9)
    assert "e0" not in rig.available()
    rig.wait(0.2)
    assert rig.eligible().probes == {"e0"}
    first = rig.start("e0")
    assert "e0" not in rig.available()
    assert rig.eligible().out == {"e0": State.HALF_OPEN}
    first.content()
    assert rig.eligible().probes == {"e0"}, "the stream goes on, the probe is over"
    second = rig.start("e0")
    second.content()
    assert "e0" in rig.available()
    assert not rig.eligible().probes
    assert [after for after, _ in rig.said("e0")] == ["ejected", "half-open", "healthy"]
    first.ended(SUCCESS)
    second.ended(SUCCESS)
    assert rig.health.states()["e0"] is State.HEALTHY


def test_a_probe_placed_by_an_old_view_goes_elsewhere() -> None:
    rig = ejected()
    rig.wait(10)
    old = rig.eligible()
    rig.start("e0")
    assert now_or_never(rig.health.admit("e0", old)) is None


@pytest.mark.parametrize("verdict", [IGNORED, Verdict(Kind.BUSY)])
def test_a_probe_that_tells_nothing_makes_room_for_the_next(verdict: Verdict) -> None:
    rig = ejected()
    rig.wait(10)
    rig.report("e0", verdict)
    assert rig.eligible().probes == {"e0"}


def test_one_failure_to_connect_ends_the_half_open_state() -> None:
    rig = ejected()
    rig.wait(10)
    rig.report("e0", REFUSED)
    assert rig.said("e0")[-1] == ("ejected", "unreachable")
    assert len(rig.said("e0")) == 3


def test_successes_before_a_failed_probe_do_not_count() -> None:
    rig = ejected()
    rig.wait(10)
    rig.report("e0", SUCCESS)
    rig.report("e0", FAILURE)
    rig.wait(20)
    rig.report("e0", SUCCESS)
    assert rig.health.states()["e0"] is State.HALF_OPEN


def test_an_old_view_does_not_lead_to_an_ejected_endpoint_nor_limit_a_healthy_one() -> None:
    rig = ejected()
    rig.wait(10)
    old = rig.eligible()
    rig.report("e0", FAILURE)
    assert now_or_never(rig.health.admit("e0", old)) is None
    rig.wait(20)
    rig.bring_back("e0")
    assert all(now_or_never(rig.health.admit("e0", old)) for _ in range(2))


def test_a_half_open_endpoint_that_is_busy_rests_first() -> None:
    rig = ejected()
    rig.wait(10)
    rig.report("e0", Verdict(Kind.BUSY, 3.0))
    assert "e0" not in rig.available()
    rig.wait(3)
    assert rig.eligible().probes == {"e0"}


def test_no_probe_goes_to_one_that_stalls_or_fails_its_checks() -> None:
    rig = ejected()
    rig.wait(10)
    rig.health.stalled("e0", True)
    assert "e0" not in rig.available()
    rig.health.stalled("e0", False)
    for good in (False, False, False):
        rig.health.checked("e0", good)
    assert "e0" not in rig.available()


def test_however_short_the_ejection_one_that_refused_has_two_seconds() -> None:
    rig = Rig(4, HealthConfig(ejection_s=0.5))
    rig.report("e0", REFUSED, 2)
    rig.wait(1.9)
    assert "e0" not in rig.available()
    rig.wait(0.2)
    assert rig.eligible().probes == {"e0"}


def test_failures_from_before_an_ejection_do_not_count_after_it() -> None:
    rig = Rig(2)
    for _ in range(2):
        rig.report("e0", SUCCESS)
        rig.report("e0", FAILURE, 4)
    assert rig.said("e0") == [("ejected", "failure_share")]
    rig.wait(10)
    rig.bring_back("e0")
    rig.report("e0", FAILURE, 4)
    assert rig.health.states()["e0"] is State.HEALTHY


def test_a_failed_probe_doubles_the_ejection_up_to_two_minutes() -> None:
    rig = ejected()
    for seconds in (10, 20, 40, 80, 120, 120):
        rig.wait(seconds - 0.1)
        assert "e0" not in rig.available()
        rig.wait(0.2)
        rig.report("e0", FAILURE)
    assert rig.changes[-1].reason == "probe_failed"


def test_a_minute_in_health_takes_a_doubling_back() -> None:
    rig = ejected()
    for seconds in (10, 20):
        rig.wait(seconds)
        rig.report("e0", FAILURE)
    rig.wait(40)
    rig.bring_back("e0")
    rig.wait(125)
    rig.report("e0", FAILURE, 3)
    rig.wait(19.9)
    assert "e0" not in rig.available()
    rig.wait(0.2)
    assert "e0" in rig.available()


@pytest.mark.parametrize(("dice", "seconds"), [(0.0, 8), (0.999999, 12)])
def test_ejections_are_spread_by_a_fifth(dice: float, seconds: float) -> None:
    rig = Rig(4, dice=lambda: dice)
    rig.report("e0", FAILURE, 3)
    rig.wait(seconds - 0.01)
    assert "e0" not in rig.available()
    rig.wait(0.02)
    assert "e0" in rig.available()


def test_old_news_neither_brings_back_nor_ejects_again() -> None:
    rig = Rig(4)
    old = [rig.start("e0") for _ in range(12)]
    rig.wait(1)
    rig.report("e0", FAILURE, 3)
    for attempt in old[:4]:
        attempt.content()
    assert rig.health.states()["e0"] is State.EJECTED
    rig.wait(10)
    for attempt in old[4:8]:
        attempt.ended(FAILURE)
    assert rig.health.states()["e0"] is State.HALF_OPEN
    rig.bring_back("e0")
    for attempt, verdict in zip(old[8:], (FAILURE, FAILURE, REFUSED, REFUSED), strict=True):
        attempt.ended(verdict)
    assert rig.health.states()["e0"] is State.HEALTHY


# -- panic, and nothing left ----------------------------------------------------------------------


def test_below_half_in_health_ejections_are_ignored_save_of_those_that_refuse() -> None:
    rig = Rig(4)
    rig.report("e0", FAILURE, 3)
    rig.report("e1", FAILURE, 3)
    assert rig.available() == ["e2", "e3"]
    rig.report("e2", REFUSED, 2)
    assert rig.available() == ["e0", "e1", "e3"]
    assert rig.eligible().panic
    assert rig.said(None) == [("panic", "share_of_healthy")]
    rig.wait(5)
    assert rig.available() == ["e0", "e1", "e3"], "not until its time is over"


def test_in_panic_one_that_refused_within_two_seconds_is_left_out_while_there_is_another() -> None:
    rig = Rig(4)
    for name in ("e0", "e1"):
        rig.health.stalled(name, True)
    rig.report("e2", REFUSED, 2)
    rig.report("e3", REFUSED)
    assert rig.available() == ["e0", "e1"]
    rig.wait(1.5)
    assert rig.available() == ["e0", "e1"]
    rig.wait(0.6)
    assert rig.available() == ["e0", "e1", "e3"]


def test_successes_in_panic_bring_an_endpoint_back() -> None:
    rig = Rig(2)
    rig.report("e0", FAILURE, 5)
    rig.health.stalled("e1", True)
    assert rig.available() == ["e0", "e1"]
    rig.bring_back("e0")
    assert rig.available() == ["e0"]


def test_one_that_refuses_in_panic_is_left_alone() -> None:
    rig = Rig(2)
    rig.report("e0", FAILURE, 5)
    rig.health.stalled("e1", True)
    assert rig.available() == ["e0", "e1"]
    old = rig.eligible()
    for _ in range(2):
        attempt = now_or_never(rig.health.admit("e0", old))
        assert attempt is not None
        attempt.ended(REFUSED)
    rig.wait(2.1)
    assert rig.available() == ["e1"]


def test_any_answer_shows_that_an_endpoint_can_be_connected_to() -> None:
    rig = Rig(2)
    rig.report("e0", FAILURE, 5)
    rig.health.stalled("e1", True)
    old = [rig.start("e0") for _ in range(3)]
    old[0].ended(REFUSED)
    old[1].ended(REFUSED)
    rig.wait(2.1)
    assert rig.available() == ["e1"]
    old[2].content()
    assert rig.available() == ["e0", "e1"]


@pytest.mark.parametrize("by_content", [True, False])
def test_an_answer_or_good_checks_show_that_an_endpoint_can_be_connected_to(by_content: bool) -> None:
    rig = Rig(2, HealthConfig(probe_successes=3))
    for name in ("e0", "e1"):
        rig.report(name, REFUSED, 2)
    rig.wait(1)
    if by_content:
        rig.start("e0").content()
    else:
        for good in (False, False, False, True, True):
            rig.health.checked("e0", good)
    assert rig.available() == ["e0"]
    assert not rig.eligible().probes


def test_when_all_refuse_there_is_none_and_each_is_tried_once_a_second() -> None:
    rig = Rig(3)
    for name in ("e0", "e1", "e2"):
        rig.report(name, REFUSED, 2)
    assert not rig.eligible().available
    rig.wait(0.9)
    assert not rig.eligible().available
    rig.wait(0.2)
    assert rig.eligible().probes == {"e0", "e1", "e2"}
    slow = rig.start("e0")
    rig.report("e1", REFUSED)
    assert rig.available() == ["e2"]
    rig.wait(0.95)
    slow.ended(REFUSED)
    rig.wait(0.1)
    assert "e0" in rig.available(), "a second after it was tried, not after it failed"


def test_once_one_connects_again_all_may_go_there_though_no_answer_came_yet() -> None:
    rig = Rig(3)
    for name in ("e0", "e1", "e2"):
        rig.report(name, REFUSED, 2)
    rig.wait(1)
    probe = rig.start("e1")
    assert "e1" not in rig.available()
    probe.connected()
    assert rig.available() == ["e1"]
    assert not rig.eligible().probes


def test_a_model_whose_endpoints_all_fail_is_served_though_others_are_well() -> None:
    rig = Rig(8)
    rig.report("e0", FAILURE, 3)
    rig.report("e1", FAILURE, 3)
    assert rig.available() == [f"e{number}" for number in range(2, 8)]
    assert rig.available("e0", "e1") == ["e0", "e1"]
    assert rig.available("e0", "e2") == ["e2"]
    rig.health.drain("e2")
    assert rig.available("e0", "e2") == ["e0"]


def test_what_is_remembered_of_subsets_is_bounded() -> None:
    rig = Rig(12)
    rig.health.drain("e0")
    for bits in range(1, 2**12):
        names = [f"e{number}" for number in range(12) if bits >> number & 1]
        assert rig.available(*names) == sorted(set(names) - {"e0"})
    assert len(rig.health._views._known) <= 256


def test_no_endpoints_at_all_is_no_fault() -> None:
    rig = Rig(0)
    assert not rig.eligible().available
    assert not rig.eligible().panic


# -- rest -----------------------------------------------------------------------------------------


def test_a_busy_endpoint_gets_nothing_while_it_rests() -> None:
    rig = Rig(2)
    rig.report("e0", Verdict(Kind.BUSY, 3.0), 100)
    assert rig.eligible().out == {"e0": State.RESTING}
    rig.wait(2.9)
    assert rig.available() == ["e1"]
    rig.wait(0.1)
    assert rig.available() == ["e0", "e1"]
    assert rig.said("e0") == [("resting", "resting"), ("healthy", "healthy")]
    assert not rig.eligible().virtual_loads


def test_a_shorter_rest_does_not_end_a_longer_one() -> None:
    rig = Rig(2)
    both = [rig.start("e0"), rig.start("e0")]
    both[0].ended(Verdict(Kind.BUSY, 10.0))
    both[1].ended(Verdict(Kind.BUSY, 1.0))
    rig.wait(9)
    assert rig.available() == ["e1"]


def test_when_all_rest_all_are_offered() -> None:
    rig = Rig(2)
    rig.report("e0", Verdict(Kind.BUSY, 3.0))
    rig.report("e1", Verdict(Kind.BUSY, 2.0))
    assert rig.available() == ["e0", "e1"]
    assert [rig.health.rest_s(besides=name) for name in ("e0", "e1")] == [2.0, 3.0]
    assert not rig.eligible().panic


def test_who_is_out_or_drained_does_not_shorten_the_wait() -> None:
    rig = Rig(3)
    rig.report("e0", FAILURE, 5)
    rig.health.drain("e1")
    assert rig.health.rest_s(besides="e2") == inf
    assert rig.health.rest_s(besides="e0") == 0


def test_one_that_rests_is_taken_before_one_that_is_ejected() -> None:
    rig = Rig(2)
    rig.report("e0", FAILURE, 5)
    rig.report("e1", Verdict(Kind.BUSY, 3.0))
    assert rig.available() == ["e1"]


# -- told from outside ----------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["stalled", "sleeping"])
def test_metrics_take_an_endpoint_out_and_bring_it_back_slowly(flag: str) -> None:
    rig = Rig(4)
    tell = getattr(rig.health, flag)
    tell("e0", True)
    tell("e0", True)
    assert rig.available() == ["e1", "e2", "e3"]
    rig.wait(500)
    assert rig.available() == ["e1", "e2", "e3"]
    tell("e0", False)
    rig.in_flight = {"e1": 10, "e2": 10, "e3": 10}
    assert rig.eligible().virtual_loads == {"e0": pytest.approx(9)}
    assert len(rig.said("e0")) == 2
    tell("unknown", True)


def test_the_only_endpoint_is_used_though_it_stalls_but_not_asleep_or_drained() -> None:
    rig = Rig(1)
    rig.health.stalled("e0", True)
    assert rig.available() == ["e0"]
    rig.health.sleeping("e0", True)
    assert rig.available() == []
    rig.health.sleeping("e0", False)
    rig.health.drain("e0")
    assert rig.available() == []
    assert rig.admit("e0") is None
    rig.health.undrain("e0")
    assert rig.available() == ["e0"]


def test_active_checks_take_out_after_three_and_bring_back_after_two() -> None:
    rig = Rig(4)
    for good in (False, False, True, False, False):
        rig.health.checked("e0", good)
    assert "e0" in rig.available()
    rig.health.checked("e0", False)
    assert rig.eligible().out == {"e0": State.UNHEALTHY}
    for good in (True, False, True):
        rig.health.checked("e0", good)
    assert "e0" not in rig.available()
    rig.health.checked("e0", True)
    assert "e0" in rig.available()


@pytest.mark.parametrize("how", ["restarted", "checked", "undrained"])
def test_what_returns_starts_slowly(how: str) -> None:
    rig = Rig(2)
    rig.in_flight = {"e1": 10}
    rig.health.undrain("e0")
    assert not rig.eligible().virtual_loads, "it was not drained"
    if how == "restarted":
        rig.health.restarted("e0")
    elif how == "checked":
        for good in (False, False, False, True, True):
            rig.health.checked("e0", good)
    else:
        rig.health.drain("e0")
        rig.health.undrain("e0")
    assert rig.eligible().virtual_loads == {"e0": pytest.approx(9)}


def test_parameters_can_change_while_it_runs() -> None:
    rig = Rig(4)
    for _ in range(3):
        rig.health.checked("e1", False)
    rig.report("e0", FAILURE, 2)
    rig.health.configure(HealthConfig(consecutive_failures=4))
    assert "e1" in rig.available(), "without checks none is failed"
    rig.report("e0", FAILURE)
    assert "e0" in rig.available()
    rig.report("e0", FAILURE)
    assert "e0" not in rig.available()


def test_state_is_kept_by_name_over_a_reload() -> None:
    rig = ejected()
    rig.health.members([endpoint("new"), *endpoints(4)])
    assert rig.eligible().out == {"e0": State.EJECTED}
    rig.in_flight = {"e1": 10, "e2": 10, "e3": 10}
    assert rig.eligible().virtual_loads == {"new": pytest.approx(9)}


def test_an_attempt_at_a_removed_endpoint_ends_without_a_trace() -> None:
    rig = Rig(4)
    attempts = [rig.start("e0") for _ in range(5)]
    rig.health.members(endpoints(4)[1:])
    for attempt in attempts:
        attempt.ended(FAILURE)
    assert not rig.changes
    assert rig.admit("e0") is None


# -- loads ----------------------------------------------------------------------------------------


def test_slow_start_rises_from_a_tenth_to_all_in_a_minute() -> None:
    rig = ejected()
    rig.wait(10)
    rig.bring_back("e0")
    rig.in_flight = {"e0": 3, "e1": 20, "e2": 20, "e3": 20}
    seen = []
    for _ in range(5):
        rig.health.review()
        seen.append(rig.eligible().virtual_loads.get("e0", 0.0))
        rig.wait(15)
    assert seen == pytest.approx([18, 15, 10, 5, 0])
    assert rig.eligible() is rig.eligible(), "and then nothing is computed any more"


def test_slow_start_goes_by_weights() -> None:
    rig = Rig(0)
    rig.health.members([endpoint("a", weight=2)])
    rig.wait(100)
    rig.health.members([endpoint("a", weight=2), endpoint("b", weight=4)])
    rig.in_flight = {"a": 20}
    loads = rig.eligible().virtual_loads
    assert loads["b"] / 4 == pytest.approx(0.9 * 20 / 2)


def test_a_reload_may_change_weights() -> None:
    rig = Rig(2)
    rig.health.members([endpoint("e0", weight=4), endpoint("e1")])
    rig.health.restarted("e0")
    rig.in_flight = {"e1": 10}
    assert rig.eligible().virtual_loads == {"e0": pytest.approx(36)}


def test_the_oldest_of_those_that_start_is_the_measure() -> None:
    rig = Rig(0)
    rig.health.members([endpoint("a")])
    rig.wait(30)
    rig.health.members([endpoint("a"), endpoint("b")])
    rig.in_flight = {"a": 10}
    assert rig.eligible().virtual_loads == {"b": pytest.approx((1 - 0.1 / 0.5) * 10)}


def test_a_half_open_endpoint_is_spared_as_one_that_starts() -> None:
    rig = ejected()
    rig.wait(10)
    rig.in_flight = {"e1": 10, "e2": 10, "e3": 10}
    assert rig.eligible().virtual_loads == {"e0": pytest.approx(9)}


def test_loads_add_up() -> None:
    rig = Rig(2)
    rig.health.restarted("e0")
    rig.report("e0", FAILURE)
    rig.in_flight = {"e1": 10}
    assert rig.eligible().virtual_loads == {"e0": pytest.approx(9 + 1)}


def test_where_all_are_new_none_is_spared() -> None:
    rig = Rig(2)
    rig.health.members([endpoint("a"), endpoint("b")])
    rig.in_flight = {"a": 5, "b": 7}
    assert not rig.eligible().virtual_loads


def test_a_failure_counts_as_load_for_the_mean_duration() -> None:
    rig = Rig(4)
    for _ in range(3):
        attempt = rig.start("e1")
        rig.wait(4)
        attempt.ended(SUCCESS)
    rig.report("e0", FAILURE)
    rig.wait(1)
    rig.report("e0", FAILURE)
    seen = []
    for _ in range(3):
        seen.append(rig.eligible().virtual_loads.get("e0", 0))
        rig.wait(2)
    assert seen == [2, 2, 0]
    assert not rig.eligible().virtual_loads


def test_a_failure_counts_as_load_for_ten_seconds_at_most() -> None:
    rig = Rig(4)
    attempt = rig.start("e1")
    rig.wait(500)
    attempt.ended(SUCCESS)
    rig.report("e0", FAILURE)
    rig.wait(9.9)
    assert rig.eligible().virtual_loads == {"e0": 1}
    rig.wait(0.2)
    assert not rig.eligible().virtual_loads


# -- the fleet ------------------------------------------------------------------------------------


class Gate:
    """A gate that answers when told."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.released: list[str] = []
        self.renewed: list[str] = []
        self.told: list[tuple[str, float, str]] = []

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        return await self.answer

    def renew(self, endpoint: str, ttl_s: float) -> None:
        self.renewed.append(endpoint)

    def release(self, endpoint: str) -> None:
        self.released.append(endpoint)

    def ejected(self, endpoint: str, for_s: float, reason: str) -> None:
        self.told.append((endpoint, for_s, reason))

    def recovered(self, endpoint: str) -> None:
        self.told.append((endpoint, 0.0, "recovered"))

    async def listen(self, heard: object) -> None:
        return


def half_open(fleet: Fleet) -> Rig:
    rig = Rig(4, fleet=fleet)
    rig.report("e0", FAILURE, 3)
    rig.wait(10)
    return rig


async def test_a_probe_waits_for_the_claim_and_gives_it_back() -> None:
    gate = Gate()
    rig = half_open(gate)
    waiting = asyncio.create_task(rig.health.admit("e0", rig.eligible()))
    await asyncio.sleep(0)
    assert "e0" not in rig.available()
    gate.answer.set_result(True)
    attempt = await waiting
    assert attempt is not None
    assert not gate.released
    attempt.content()
    attempt.ended(SUCCESS)
    assert gate.released == ["e0"]


async def test_a_claim_is_renewed_as_long_as_its_probe_takes() -> None:
    gate = Gate()
    gate.answer.set_result(True)
    rig = half_open(gate)
    attempt = await rig.health.admit("e0", rig.eligible())
    assert attempt is not None
    for _ in range(300):
        rig.wait(1)
    assert gate.renewed == ["e0"] * 300
    attempt.ended(SUCCESS)
    rig.wait(1)
    assert len(gate.renewed) == 300


async def test_where_another_balancer_probes_the_request_goes_elsewhere() -> None:
    gate = Gate()
    gate.answer.set_result(False)
    rig = half_open(gate)
    assert await rig.health.admit("e0", rig.eligible()) is None
    assert "e0" not in rig.available()
    rig.wait(1)
    assert rig.eligible().probes == {"e0"}
    assert not gate.released, "the claim is not ours"


async def test_a_cancelled_claim_leaves_no_probe_behind() -> None:
    gate = Gate()
    rig = half_open(gate)
    waiting = asyncio.create_task(rig.health.admit("e0", rig.eligible()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    rig.wait(1)
    assert rig.eligible().probes == {"e0"}


async def test_what_was_found_here_is_told_and_what_was_heard_is_not_told_again() -> None:
    fleet = Gate()
    fleet.answer.set_result(True)
    rig = half_open(fleet)
    assert fleet.told == [("e0", 10.0, "failures")]
    for _ in range(2):
        attempt = await rig.health.admit("e0", rig.eligible())
        assert attempt is not None
        attempt.ended(SUCCESS)
    assert fleet.told[1:] == [("e0", 0.0, "recovered")]
    rig.health.heard([News("e1", True, 0.5, 9.0, "unreachable"), News("e1", False, 0.1)])
    assert len(fleet.told) == 2


def test_what_another_balancer_ejected_is_out_here_too_and_half_open_afterwards() -> None:
    rig = Rig(4)
    rig.health.heard([News("e0", True, 0.5, 9.0, "failures"), News("nobody", True, 0.5, 9.0, "failures")])
    assert rig.said("e0") == [("ejected", "failures")]
    assert rig.changes[-1].detail == "found by another balancer; out for 9 s"
    rig.wait(8.9)
    assert rig.eligible().out == {"e0": State.EJECTED}
    rig.wait(0.2)
    assert rig.eligible().probes == {"e0"}
    rig.bring_back("e0")


def test_a_balancer_that_comes_when_the_ejection_is_over_probes_first() -> None:
    rig = Rig(4)
    rig.health.heard([News("e0", True, 20.0, 0.0, "failures")])
    assert rig.eligible().probes == {"e0"}


def test_what_another_balancer_cannot_connect_to_is_avoided_in_a_panic() -> None:
    rig = Rig(4)
    rig.health.heard([News(f"e{number}", True, 0.5, 9.0, "unreachable") for number in range(3)])
    assert rig.eligible().panic
    assert rig.available() == ["e3"]


def test_what_recovered_elsewhere_is_back_and_starts_slowly() -> None:
    rig = ejected()
    rig.wait(11)
    rig.health.heard([News("e0", False, 1.0)])
    assert rig.said("e0")[-1] == ("healthy", "recovered")
    rig.in_flight = {"e1": 10, "e2": 10, "e3": 10}
    assert rig.eligible().virtual_loads["e0"] == pytest.approx(9.0)


def test_what_others_connect_to_again_is_no_more_unreachable_here() -> None:
    rig = Rig(4)
    rig.report("e0", REFUSED, 2)
    rig.wait(3)
    rig.health.heard([News("e0", False, 0.5)])
    rig.health.heard([News(f"e{number}", True, 0.1, 9.0, "unreachable") for number in (1, 2, 3)])
    assert rig.eligible().panic
    assert rig.available() == ["e0"]


async def test_what_was_silent_and_says_something_is_told_to_the_others() -> None:
    fleet = Gate()
    rig = Rig(4, fleet=fleet)
    stream = rig.start("e0", Work.STREAM)
    rig.wait(125)
    assert fleet.told == [("e0", 120.0, "silent")]
    stream.content()
    assert fleet.told[1:] == [("e0", 0.0, "recovered")]


def test_news_older_than_what_was_seen_here_is_ignored() -> None:
    rig = Rig(4)
    rig.report("e0", SUCCESS)
    rig.wait(1)
    rig.health.heard([News("e0", True, 1.5, 9.0, "failures")])
    assert not rig.changes
    rig.report("e1", FAILURE, 3)
    rig.wait(1)
    rig.health.heard([News("e1", False, 1.5)])
    assert rig.health.states()["e1"] is State.EJECTED


def test_what_is_heard_ejects_no_more_than_what_is_seen() -> None:
    for count, most in ((1, 0), (2, 1), (4, 2)):
        rig = Rig(count)
        rig.health.heard([News(f"e{number}", True, 0.5, 9.0, "failures") for number in range(count)])
        assert len(rig.eligible().out) == most


# -- the rest -------------------------------------------------------------------------------------


def test_the_keys_are_checked() -> None:
    keys = TypeAdapter(HealthConfig)
    assert keys.validate_python({}) == HealthConfig()
    assert keys.validate_python({"checks": {}}).checks is not None
    for wrong in ({"max_ejected": 1.5}, {"ejection_s": 0}, {"checks": {"path": "health\r\nX: y"}}):
        with pytest.raises(ValidationError):
            keys.validate_python(wrong)


def test_asking_costs_next_to_nothing_while_nothing_is_wrong() -> None:
    rig = Rig(8)
    rig.report("e0", SUCCESS)
    rig.eligible()
    best_s = min(repeat(lambda: rig.health.eligible(rig.in_flight), number=1000, repeat=5)) / 1000
    assert best_s < 20e-6
