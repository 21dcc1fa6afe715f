"""What pages tell about an engine's health."""

from typing import Any

from lb_core.engines.model import EngineMetrics
from lb_core.engines.watch import Change, Watch


def page(at: float, **values: Any) -> EngineMetrics:
    return EngineMetrics(
        at=at, dialect="vllm", **{"running": 1, "progress": 5, "generated_tokens": 5} | values
    )


def changes(
    *pages: EngineMetrics, in_flight: int = 0, watch: Watch | None = None
) -> list[tuple[float, Change]]:
    watch = watch or Watch()
    return [(each.at, change) for each in pages for change in watch.observe(each, in_flight)]


def test_an_engine_that_has_work_and_makes_no_step_for_two_windows_is_stalled() -> None:
    still = [page(at) for at in range(131)]
    assert changes(*still) == [(120, Change.STALLED)]
    assert changes(*still[:120]) == []


def test_a_step_between_the_windows_keeps_it_from_being_stalled() -> None:
    pages = [page(at, progress=5 if at < 100 else 6) for at in range(200)]
    assert changes(*pages) == []


def test_a_long_prefill_that_fills_blocks_is_not_stalled() -> None:
    assert changes(*(page(at, kv_usage=at / 1000) for at in range(400))) == []


def test_an_idle_engine_is_not_stalled() -> None:
    assert changes(*(page(at, running=0) for at in range(400))) == []


def test_a_hung_engine_that_reports_nothing_running_is_stalled_by_our_own_requests() -> None:
    frozen = [page(at, running=0) for at in range(130)]
    assert changes(*frozen, in_flight=3) == [(120, Change.STALLED)]


def test_a_stalled_engine_that_moves_is_told_once() -> None:
    pages = [page(at) for at in range(125)] + [page(at, progress=at) for at in range(125, 130)]
    assert changes(*pages) == [(120, Change.STALLED), (125, Change.MOVING)]


def test_without_a_counter_of_steps_there_is_no_verdict() -> None:
    assert changes(*(page(at, progress=None, generated_tokens=None) for at in range(400))) == []


def test_gaps_between_pages_do_not_count_double() -> None:
    assert changes(page(0), page(300)) == []
    assert changes(page(0), page(300), page(301)) == []
    assert changes(page(0), page(300), page(360)) == [(360, Change.STALLED)]


def test_falling_counters_are_a_restart_and_end_a_stall() -> None:
    pages = [page(at) for at in range(125)] + [page(125, progress=0, generated_tokens=0)]
    assert changes(*pages) == [(120, Change.STALLED), (125, Change.RESTARTED), (125, Change.MOVING)]


def test_a_restart_is_seen_over_pages_without_the_counter_and_told_once() -> None:
    gap = page(1, progress=None, generated_tokens=None)
    after = [page(at, progress=1, generated_tokens=1) for at in (2, 3)]
    assert changes(page(0), gap, *after) == [(2, Change.RESTARTED)]


def test_another_engine_at_the_same_place_is_a_restart() -> None:
    other = EngineMetrics(at=1, dialect="sglang", progress=9)
    assert changes(page(0), other) == [(1, Change.RESTARTED)]


def test_sleep_is_told_at_both_ends_and_a_sleeper_is_not_stalled() -> None:
    pages = [page(at, sleeping=at < 300) for at in range(1, 400)]
    assert changes(*pages) == [(1, Change.ASLEEP), (300, Change.AWAKE)]


def test_an_engine_started_anew_that_says_nothing_of_sleep_is_awake() -> None:
    pages = [page(1, sleeping=True), page(2, progress=0, generated_tokens=0)]
    assert changes(*pages) == [(1, Change.ASLEEP), (2, Change.RESTARTED), (2, Change.AWAKE)]


def test_a_stalled_engine_started_anew_without_a_counter_of_steps_is_not_stalled() -> None:
    pages = [page(at, prefix_hits=5) for at in range(125)]
    pages.append(page(125, progress=None, generated_tokens=None, prefix_hits=0))
    assert changes(*pages) == [(120, Change.STALLED), (125, Change.RESTARTED), (125, Change.MOVING)]


def test_a_verdict_that_no_page_gives_any_more_lapses() -> None:
    watch = Watch()
    changes(page(0, sleeping=True), watch=watch)
    assert watch.lapse(0) == ()
    changes(page(3), watch=watch)
    assert watch.lapse(1) == (Change.AWAKE,)
    assert watch.lapse(1) == ()


def test_a_stall_that_lapsed_is_told_by_the_next_page_that_shows_no_step() -> None:
    watch = Watch()
    changes(*(page(at) for at in range(121)), watch=watch)
    assert watch.lapse(120) == ()
    assert watch.lapse(121) == (Change.MOVING,)
    assert changes(page(130), watch=watch) == [(130, Change.STALLED)]


def test_what_is_not_said_of_sleep_changes_nothing() -> None:
    watch = Watch()
    assert changes(page(0, sleeping=True), page(1), watch=watch) == [(0, Change.ASLEEP)]
    assert watch.asleep
