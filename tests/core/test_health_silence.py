"""An engine that answers nothing is found out by its silence, and an honest one never is."""

import pytest

from lb_core.health import IGNORED, SUCCESS, Attempt, HealthConfig, Kind, State, Verdict, Work
from tests.core.test_health import Rig

FAILURE, TIMED_OUT = Verdict(Kind.FAILURE), Verdict(Kind.TIMED_OUT)


def pass_time(rig: Rig, seconds: int) -> None:
    for _ in range(seconds):
        rig.wait(1)


def silent(count: int = 4) -> tuple[Rig, Attempt]:
    """One stream has waited so long that its endpoint is out."""
    rig = Rig(count)
    stream = rig.start("e0", Work.STREAM)
    pass_time(rig, 125)
    assert rig.said("e0") == [("ejected", "silent")]
    return rig, stream


def test_an_endpoint_whose_streams_wait_for_more_than_two_minutes_gets_no_more() -> None:
    rig, _ = silent()
    assert rig.available() == ["e1", "e2", "e3"]
    assert rig.eligible().out == {"e0": State.EJECTED}
    assert rig.changes[-1].detail.startswith("no token came")


def test_an_honest_first_token_after_two_minutes_is_no_silence() -> None:
    rig = Rig(4)
    for _ in range(5):
        stream = rig.start("e0", Work.STREAM)
        pass_time(rig, 120)
        stream.content()
        stream.ended(SUCCESS)
        rig.wait(9)
    assert not rig.changes


def test_clients_that_leave_before_an_honest_first_token_do_not_make_it_silent() -> None:
    rig = Rig(4)
    for _ in range(3):
        left = rig.start("e0", Work.STREAM)
        pass_time(rig, 60)
        left.ended(IGNORED)
        stream = rig.start("e0", Work.STREAM)
        pass_time(rig, 120)
        stream.content()
    assert not rig.changes


def test_a_stream_of_half_an_hour_with_pauses_of_100_s_is_no_silence() -> None:
    rig = Rig(4)
    stream = rig.start("e0", Work.STREAM)
    stream.content()
    for _ in range(18):
        rig.start("e0", Work.STREAM)  # waits behind it
        pass_time(rig, 100)
        stream.progressed()
    assert not rig.changes


def test_a_token_of_any_stream_brings_it_back_and_it_starts_slowly() -> None:
    rig, stream = silent()
    stream.content()
    assert rig.said("e0")[-1] == ("healthy", "recovered")
    rig.in_flight = {"e1": 10, "e2": 10, "e3": 10}
    assert rig.eligible().virtual_loads["e0"] == pytest.approx(9.0)


def test_a_step_on_its_page_brings_it_back() -> None:
    rig, _ = silent()
    rig.health.stepped("e0")
    assert rig.said("e0")[-1] == ("healthy", "recovered")
    rig.health.stepped("unknown")


def test_an_engine_that_steps_is_not_silent_however_long_a_prefill_takes() -> None:
    rig = Rig(4)
    rig.start("e0", Work.STREAM)
    for _ in range(60):
        pass_time(rig, 10)
        rig.health.stepped("e0")
    assert not rig.changes


@pytest.mark.parametrize("work", [Work.ANSWER, Work.OTHER])
def test_an_answer_in_one_piece_may_take_any_time(work: Work) -> None:
    rig = Rig(4)
    rig.start("e0", work)
    pass_time(rig, 900)
    assert not rig.changes


def test_a_page_that_hangs_as_long_as_an_answer_is_awaited_shows_silence() -> None:
    rig = Rig(4)
    answer = rig.start("e0", Work.ANSWER)
    pass_time(rig, 60)
    rig.health.page("e0", True)
    pass_time(rig, 124)
    assert not rig.changes
    pass_time(rig, 1)
    assert rig.said("e0") == [("ejected", "silent")]
    rig.health.page("e0", False)
    answer.content()
    assert rig.said("e0")[1:] == [("healthy", "recovered")]


def test_a_page_that_hangs_for_a_while_or_while_nobody_waits_shows_nothing() -> None:
    rig = Rig(4)
    rig.health.page("e0", True)
    pass_time(rig, 300)
    rig.start("e0", Work.ANSWER).ended(SUCCESS)
    failed = rig.start("e0", Work.ANSWER)
    pass_time(rig, 100)
    failed.ended(IGNORED)
    rig.start("e0", Work.ANSWER)
    pass_time(rig, 100)
    rig.health.page("e0", False)
    pass_time(rig, 300)
    rig.health.page("gone", True)
    assert not rig.changes


def test_answers_of_a_front_end_are_no_sign_of_life() -> None:
    rig = Rig(4)
    rig.start("e0", Work.STREAM)
    for _ in range(125):
        models = rig.start("e0", Work.OTHER)
        models.content()
        models.ended(SUCCESS)
        rig.start("e0", Work.STREAM).ended(SUCCESS)  # what judge makes of 400
        rig.wait(1)
    assert rig.said("e0") == [("ejected", "silent")]


def test_an_answer_in_one_piece_is_a_sign_of_life() -> None:
    rig = Rig(4)
    rig.start("e0", Work.STREAM)
    for _ in range(4):
        pass_time(rig, 100)
        rig.start("e0", Work.ANSWER).content()
    assert not rig.changes


@pytest.mark.parametrize("work", [Work.ANSWER, Work.STREAM])
def test_an_endpoint_of_which_only_time_outs_come_is_silent_within_130_s(work: Work) -> None:
    rig = Rig(4)
    for _ in range(26):
        attempt = rig.start("e0", work)
        rig.wait(1)
        attempt.ended(TIMED_OUT)
        pass_time(rig, 4)
    assert rig.said("e0") == [("ejected", "silent")]


def test_time_outs_among_answers_are_no_silence() -> None:
    rig = Rig(4)
    for number in range(300):
        attempt = rig.start("e0", Work.STREAM)
        rig.wait(1)
        if number % 50 == 49:
            attempt.content()
        attempt.ended(TIMED_OUT)
    assert not rig.changes


def test_a_few_clients_that_left_and_then_nobody_is_no_silence() -> None:
    rig = Rig(4)
    for _ in range(10):
        attempt = rig.start("e0", Work.STREAM)
        pass_time(rig, 20)
        attempt.ended(IGNORED)
        pass_time(rig, 40)
    assert not rig.changes


def test_clients_that_leave_at_once_make_nobody_silent() -> None:
    rig = Rig(4)
    for _ in range(100):
        attempt = rig.start("e0", Work.STREAM)
        rig.wait(4)
        attempt.ended(IGNORED)
    assert not rig.changes


def test_a_stream_that_failed_does_not_wait() -> None:
    rig = Rig(4)
    rig.start("e0", Work.STREAM).ended(FAILURE)
    pass_time(rig, 600)
    assert not rig.changes


def test_other_ejections_are_not_ended_by_a_token() -> None:
    rig = Rig(4)
    stream = rig.start("e0", Work.STREAM)
    rig.report("e0", FAILURE, 3)
    stream.content()
    assert rig.said("e0") == [("ejected", "failures")]


def test_the_only_endpoint_and_more_than_half_are_not_ejected_for_silence() -> None:
    for count, most in ((1, 0), (2, 1), (4, 2)):
        rig = Rig(count)
        for number in range(count):
            rig.start(f"e{number}", Work.STREAM)
        pass_time(rig, 300)
        assert len(rig.eligible().out) == most


def test_silence_can_be_left_unjudged_and_its_time_be_set() -> None:
    rig = Rig(4, HealthConfig(silent_s=None))
    rig.start("e0", Work.STREAM)
    pass_time(rig, 600)
    assert not rig.changes
    rig = Rig(4, HealthConfig(silent_s=5))
    rig.start("e0", Work.STREAM)
    pass_time(rig, 4)
    assert not rig.changes
    pass_time(rig, 1)
    assert rig.said("e0") == [("ejected", "silent")]


def test_what_was_sent_before_the_last_token_waits_since_then() -> None:
    rig = Rig(4)
    stream = rig.start("e0", Work.STREAM)
    waiting = [rig.start("e0", Work.ANSWER) for _ in range(5)]
    pass_time(rig, 120)
    stream.content()
    pass_time(rig, 6)
    for attempt in waiting:
        attempt.ended(IGNORED)
    pass_time(rig, 5)
    assert not rig.changes


def test_clients_that_leave_soon_are_no_silence() -> None:
    rig = Rig(4)
    for _ in range(10):
        attempt = rig.start("e0", Work.STREAM)
        rig.wait(6)  # long enough to count
        attempt.ended(IGNORED)
    rig.wait(1)
    assert not rig.changes


def test_clients_that_left_long_ago_are_no_silence() -> None:
    rig = Rig(4)
    for _ in range(5):
        attempt = rig.start("e0", Work.STREAM)
        rig.wait(6)  # long enough to count
        attempt.ended(IGNORED)
    pass_time(rig, 300)
    assert not rig.changes


def test_clients_that_leave_what_was_answered_or_is_no_inference_are_no_silence() -> None:
    rig = Rig(4)
    streams = [rig.start("e0", Work.STREAM) for _ in range(8)]
    for stream in streams:
        stream.content()
    for stream in streams:
        pass_time(rig, 20)
        stream.ended(IGNORED)
        models = rig.start("e1", Work.OTHER)
        pass_time(rig, 1)
        models.ended(TIMED_OUT)
    assert not rig.changes


def test_what_is_no_answer_and_what_is_over_is_no_sign_of_life() -> None:
    rig = Rig(4)
    silent = rig.start("e0", Work.STREAM)
    over = rig.start("e1", Work.STREAM)
    over.content()
    over.ended(SUCCESS)
    rig.start("e1", Work.STREAM)
    for _ in range(2):
        pass_time(rig, 60)
        silent.progressed()
        over.progressed()
    pass_time(rig, 6)
    assert rig.said("e0") == rig.said("e1") == [("ejected", "silent")]


def test_an_ejection_for_failures_ends_in_time_though_streams_wait() -> None:
    rig = Rig(4)
    rig.start("e0", Work.STREAM)
    pass_time(rig, 124)
    rig.report("e0", FAILURE, 3)
    pass_time(rig, 10)
    assert rig.said("e0") == [("ejected", "failures"), ("half-open", "ejection_over")]
