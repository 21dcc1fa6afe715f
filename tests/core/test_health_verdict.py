"""What the end of an attempt says about the endpoint."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_core.health import Kind, judge, rest_seconds
from lb_core.types import Ending, Outcome

NOW = 784111767.0  # Sun, 06 Nov 1994 08:49:27 GMT

COMPLETE, LEFT, FAILED, GIVEN_UP, TIMED_OUT = (
    Ending.COMPLETE,
    Ending.CLIENT_LEFT,
    Ending.UPSTREAM_FAILED,
    Ending.ABANDONED,
    Ending.TIMED_OUT,
)


@pytest.mark.parametrize(
    ("ending", "status", "kind"),
    [
        (COMPLETE, 200, Kind.SUCCESS),
        (COMPLETE, 101, Kind.SUCCESS),
        (COMPLETE, 204, Kind.SUCCESS),
        (COMPLETE, 302, Kind.SUCCESS),
        (COMPLETE, 400, Kind.SUCCESS),
        (COMPLETE, 401, Kind.SUCCESS),
        (COMPLETE, 404, Kind.SUCCESS),
        (COMPLETE, 413, Kind.SUCCESS),
        (FAILED, 413, Kind.SUCCESS),
        (COMPLETE, 501, Kind.SUCCESS),
        (COMPLETE, 505, Kind.SUCCESS),
        (COMPLETE, 429, Kind.BUSY),
        (COMPLETE, 503, Kind.BUSY),
        (FAILED, 503, Kind.BUSY),
        (COMPLETE, 529, Kind.BUSY),
        (COMPLETE, 500, Kind.FAILURE),
        (COMPLETE, 502, Kind.FAILURE),
        (COMPLETE, 504, Kind.FAILURE),
        (COMPLETE, 599, Kind.FAILURE),
        (FAILED, None, Kind.FAILURE),
        (FAILED, 200, Kind.FAILURE),
        (LEFT, None, Kind.IGNORED),
        (LEFT, 200, Kind.IGNORED),
        (GIVEN_UP, None, Kind.IGNORED),
        (GIVEN_UP, 500, Kind.IGNORED),
        (TIMED_OUT, None, Kind.TIMED_OUT),
        (TIMED_OUT, 200, Kind.TIMED_OUT),
        (COMPLETE, None, Kind.IGNORED),
    ],
)
def test_an_ending_and_a_status_make_a_verdict(ending: Ending, status: int | None, kind: Kind) -> None:
    assert judge(Outcome(ending, status), unix_time=NOW).kind is kind


def test_no_connection_is_told_from_a_reset() -> None:
    assert judge(Outcome(FAILED), connected=False, unix_time=NOW).kind is Kind.REFUSED
    assert judge(Outcome(LEFT), connected=False, unix_time=NOW).kind is Kind.IGNORED


@pytest.mark.parametrize(("code", "kind"), [(503, Kind.BUSY), (500, Kind.FAILURE), (400, Kind.SUCCESS)])
def test_an_error_event_before_any_content_counts_as_its_code(code: int, kind: Kind) -> None:
    assert judge(Outcome(COMPLETE, 200), error_code=code, unix_time=NOW).kind is kind


@pytest.mark.parametrize(
    ("header", "rest_s"),
    [
        (None, 1.0),
        ("", 1.0),
        ("soon", 1.0),
        ("1_0", 1.0),
        ("٣", 1.0),
        ("nan", 1.0),
        ("inf", 1.0),
        ("1e9", 1.0),
        ("0", 0.0),
        ("-5", 0.0),
        (" 7 ", 7.0),
        ("2.5", 2.5),
        ("30", 30.0),
        ("31", 30.0),
        ("1000000000", 30.0),
        ("9" * 5000, 30.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:49:37", 10.0),
        ("Sun, 06 Nov 1994 09:49:37 GMT", 30.0),
        ("Sun, 06 Nov 1994 08:49:17 GMT", 0.0),
        ("Sun, 06 Nov 99999 08:49:17 GMT", 1.0),
        ("nov 1994 99999999999999999999 08.49.37  (", 1.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT" + " " * 40 + "(comment)", 1.0),
        ("Sun, 99 Nov 1994 08:49:17 GMT", 1.0),
        ("Sun, 06 Nov 1994 08:49:37 +9999999999", 1.0),
    ],
)
def test_retry_after_is_read_and_clamped(header: str | None, rest_s: float) -> None:
    assert rest_seconds(header, unix_time=NOW) == rest_s
    assert judge(Outcome(COMPLETE, 503), retry_after=header, unix_time=NOW).rest_s == rest_s


def test_a_date_without_a_zone_is_not_local(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert rest_seconds("Sun, 06 Nov 1994 08:49:37", unix_time=NOW) == 10
    time.tzset()


_DATE_WORDS = st.sampled_from(
    ["Sun,", "06", "Nov", "1994", "08:49:37", "GMT", "+9999", "-0000", ":", "0", "("]
)


@given(st.text() | st.lists(_DATE_WORDS).map(" ".join))
def test_no_header_makes_a_rest_out_of_bounds(header: str) -> None:
    assert 0 <= rest_seconds(header, unix_time=NOW) <= 30
