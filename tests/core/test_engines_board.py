"""What is known of the engines: ages, own requests since the page, warnings once."""

import logging

import pytest

from lb_core.engines.board import PAGE, Board
from lb_core.engines.model import LATE, EngineMetrics, Observation, Scrape
from lb_core.engines.shares import RecentChoices
from lb_core.engines.watch import Change
from tests.core.build import Clock


class Desk:
    """A board, its clock and what it told."""

    def __init__(self) -> None:
        self.clock = Clock(100.0)
        self.changes: list[tuple[str, Change]] = []
        self.pages: list[tuple[str, bool]] = []
        self.board = Board(
            clock=self.clock,
            on_change=lambda name, change: self.changes.append((name, change)),
            on_page=lambda name, hangs: self.pages.append((name, hangs)),
        )

    def page(self, at: float, **values: object) -> EngineMetrics:
        all_values = {"waiting": 0.0, "running": 0.0, "kv_usage": 0.0} | values
        metrics = EngineMetrics(at=at, dialect="vllm", **all_values)  # type: ignore[arg-type]
        self.board.take(Scrape("a", at, 0.1, metrics))
        return metrics

    def fail(self, error: str = "HTTP 404") -> None:
        self.board.take(Scrape("a", self.clock.now, 1.0, error=error))

    def since(self) -> int:
        return self.board.observations(["a"])["a"].placed_since


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_an_observation_has_the_page_its_age_and_the_requests_since(desk: Desk) -> None:
    desk.board.placed("a", "before")
    desk.clock.now = 101
    metrics = desk.page(at=100.5)
    desk.board.placed("a", "after")
    desk.clock.now = 103
    assert desk.board.observations(["a", "b"]) == {"a": Observation(metrics, 2.5, 1)}


def test_a_request_placed_after_the_page_was_asked_for_is_not_in_it(desk: Desk) -> None:
    desk.board.placed("a", "1")
    desk.clock.now = 100.2
    desk.board.placed("a", "2")
    desk.page(at=100.1)
    assert desk.since() == 1


def test_a_request_that_ended_counts_no_more_whichever_it_is(desk: Desk) -> None:
    desk.board.placed("a", "old")
    desk.clock.now = 101
    desk.page(at=100.5)
    for number in range(3):
        desk.board.placed("a", f"new-{number}")
    desk.board.finished("a", "old")
    assert desk.since() == 3
    desk.board.finished("a", "new-0")
    desk.board.finished("a", "new-0")
    desk.board.finished("unheard of", "new-1")
    assert desk.since() == 2


def test_counts_never_go_wrong_over_any_order_of_events(desk: Desk) -> None:
    desk.page(at=99)
    desk.board.placed("a", "1")
    desk.board.placed("a", "1")
    assert desk.since() == 1
    desk.clock.now = 102
    desk.page(at=101)
    assert desk.since() == 0
    desk.board.finished("a", "1")
    assert desk.since() == 0


def test_a_page_asked_for_earlier_does_not_replace_a_later_one(desk: Desk) -> None:
    later = desk.page(at=100)
    desk.page(at=99)
    assert desk.board.observations(["a"])["a"].metrics is later


def test_sleep_is_known_until_it_is_too_old(desk: Desk) -> None:
    desk.page(at=100, sleeping=True)
    for desk.clock.now in (101, 103, 105):
        desk.fail()
        desk.board.tick()
    assert desk.changes == [("a", Change.ASLEEP)]
    desk.clock.now = 105.1
    desk.board.tick()
    desk.board.tick()
    assert desk.changes == [("a", Change.ASLEEP), ("a", Change.AWAKE)]


def test_a_sleeper_whose_page_hangs_for_moments_does_not_flap(desk: Desk) -> None:
    for second in range(60):
        desk.clock.now = 100 + second
        if second % 5:
            desk.fail()
        else:
            desk.page(at=desk.clock.now, sleeping=True)
        desk.board.tick()
    assert desk.changes == [("a", Change.ASLEEP)]


def test_of_engines_that_are_not_visited_any_more_nothing_is_known(desk: Desk) -> None:
    desk.page(at=100, sleeping=True)
    desk.board.placed("a", "1")
    desk.board.forget()
    assert desk.changes == [("a", Change.ASLEEP), ("a", Change.AWAKE)]
    assert desk.board.observations(["a"]) == {}
    desk.page(at=102)
    assert desk.since() == 0
    desk.board.finished("a", "1")
    assert desk.since() == 0


def test_a_step_is_told_and_a_first_page_is_none(desk: Desk) -> None:
    steps: list[str] = []
    desk.board.on_step = steps.append
    desk.page(at=100, progress=1.0)
    desk.page(at=101, progress=1.0)
    assert not steps
    desk.page(at=102, progress=2.0)
    desk.page(at=103)
    assert steps == ["a"]


def test_a_known_page_that_hangs_is_told_until_anything_comes(desk: Desk) -> None:
    desk.fail(LATE)
    assert desk.pages == [], "nobody knows if there is a page"
    for ends in (lambda: desk.page(at=100), desk.fail, desk.board.forget):
        desk.page(at=100)
        desk.fail(LATE)
        desk.fail(LATE)
        ends()
        assert desk.pages == [("a", True), ("a", False)]
        desk.pages.clear()


def test_own_requests_make_a_hung_engine_stalled(desk: Desk) -> None:
    desk.board.placed("a", "1")
    for at in range(101, 222):
        desk.page(at=at, progress=1.0)
    assert desk.changes == [("a", Change.STALLED)]


def test_h11_one_warning_when_a_signal_goes_missing_and_one_line_when_it_is_back(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for at, usage in enumerate((None, None, 0.5, 0.5, None)):
        desk.page(at=100 + at, kv_usage=usage)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "WARNING"]
    assert "kv_usage" in caplog.text
    assert "neither speaks for it nor against it" in caplog.text
    assert desk.board.missing() == {"a": ("kv_usage",)}


def test_a_target_that_no_page_has_is_told(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.page(at=100, absent=("vllm:nothing",))
    assert "vllm:nothing" in caplog.text


def test_pages_that_fail_are_told_when_it_matters_and_when_they_are_back(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    desk.page(at=100, kv_usage=None)
    caplog.clear()
    for now in (101, 104, 106, 107):
        desk.clock.now = now
        desk.fail()
        assert (PAGE in desk.board.missing()["a"]) == (now > 105)
    desk.page(at=107, kv_usage=None)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "HTTP 404" in caplog.text


def test_an_endpoint_without_any_page_is_told_at_once(desk: Desk) -> None:
    desk.fail()
    assert desk.board.missing() == {"a": (PAGE,)}
    assert desk.board.observations(["a"]) == {}
    assert desk.changes == []


def test_an_endpoint_that_left_is_forgotten(desk: Desk) -> None:
    desk.page(at=100)
    desk.board.keep(["b"])
    assert desk.board.observations(["a"]) == {}


def test_recent_choices_count_the_last_hundred() -> None:
    recent = RecentChoices()
    for number in range(250):
        recent.note("a" if number < 190 else "b")
    assert recent.counts == {"a": 40, "b": 60}
    for _ in range(60):
        recent.note("b")
    assert recent.counts == {"b": 100}
