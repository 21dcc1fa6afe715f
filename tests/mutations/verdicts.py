"""What an ending says about an endpoint, and when an endpoint is ejected."""

from tests.mutations.model import Mutation

_ATTEMPT = "lb_core/health/attempt.py"
_BALANCER = "lb_core/balancer.py"
_OUTLIER = "lb_core/health/outlier.py"
_VERDICT = "lb_core/health/verdict.py"

_BACK = "tests/core/test_giving_back.py::"
_HEALTH = "tests/core/test_health.py::"
_REST = "tests/core/test_health_verdict.py::test_retry_after_is_read_and_clamped"
_TABLE = "tests/core/test_health_verdict.py::test_an_ending_and_a_status_make_a_verdict"

MUTATIONS = (
    # The table: no connection, failure, busy, success, ignored.
    Mutation(
        "a client that leaves is charged to the endpoint",
        _VERDICT,
        "judge",
        "{Ending.CLIENT_LEFT, Ending.ABANDONED}",
        "{Ending.ABANDONED}",
        "tests/core/test_health_verdict.py::test_no_connection_is_told_from_a_reset",
    ),
    Mutation(
        "what we gave up is charged to the endpoint",
        _VERDICT,
        "judge",
        "{Ending.CLIENT_LEFT, Ending.ABANDONED}",
        "{Ending.CLIENT_LEFT}",
        _TABLE,
    ),
    Mutation(
        "no connection is a failure like any other",
        _VERDICT,
        "judge",
        "if not connected:",
        "if False:",
        "tests/core/test_health_verdict.py::test_no_connection_is_told_from_a_reset",
    ),
    Mutation("busy is a failure", _VERDICT, "judge", "if status in _BUSY:", "if False:", _TABLE),
    Mutation(
        "429 is no sign of being busy", _VERDICT, "", "frozenset({429, 503, 529})", "{503, 529}", _TABLE
    ),
    Mutation(
        "503 is no sign of being busy", _VERDICT, "", "frozenset({429, 503, 529})", "{429, 529}", _TABLE
    ),
    Mutation(
        "529 is no sign of being busy", _VERDICT, "", "frozenset({429, 503, 529})", "{429, 503}", _TABLE
    ),
    Mutation(
        "a busy endpoint rests for a second whatever it asks for",
        _VERDICT,
        "judge",
        "rest_seconds(retry_after, unix_time=unix_time)",
        "REST_S",
        _REST,
    ),
    Mutation(
        "an endpoint rests for as long as it likes",
        _VERDICT,
        "rest_seconds",
        "min(max(wanted, 0.0), MAX_REST_S)",
        "max(wanted, 0.0)",
        _REST,
    ),
    Mutation(
        "a rest may be negative",
        _VERDICT,
        "rest_seconds",
        "min(max(wanted, 0.0), MAX_REST_S)",
        "min(wanted, MAX_REST_S)",
        _REST,
    ),
    Mutation(
        "a 4xx whose connection breaks is a failure",
        _VERDICT,
        "judge",
        "400 <= status < 500",
        "False",
        _TABLE,
    ),
    Mutation("501 and 505 are failures", _VERDICT, "judge", " or status in _REQUEST_AT_FAULT", "", _TABLE),
    Mutation(
        "a reset, a cut and what is not HTTP are no failures",
        _VERDICT,
        "judge",
        "outcome.ending is Ending.UPSTREAM_FAILED or ",
        "",
        _TABLE,
    ),
    Mutation(
        "other 5xx are no failures",
        _VERDICT,
        "judge",
        "(status is not None and status >= 500)",
        "False",
        _TABLE,
    ),
    Mutation(
        "an error event in place of content counts as its 200",
        _VERDICT,
        "judge",
        "outcome.status if error_code is None else error_code",
        "outcome.status",
        "tests/core/test_health_verdict.py::test_an_error_event_before_any_content_counts_as_its_code",
    ),
    Mutation(
        "an end without a status is a success",
        _VERDICT,
        "judge",
        "IGNORED if status is None else SUCCESS",
        "SUCCESS",
        _TABLE,
    ),
    Mutation(
        "no success is ever told",
        _VERDICT,
        "judge",
        "IGNORED if status is None else SUCCESS",
        "IGNORED",
        _TABLE,
    ),
    # What the balancer hands on of an outcome.
    Mutation(
        "the health does not hear that there was no connection",
        _BALANCER,
        "_verdict",
        "connected=outcome.connected",
        "connected=True",
        _BACK + "test_no_connection_a_retry_after_and_an_error_event_reach_the_health",
    ),
    Mutation(
        "the health does not hear of Retry-After",
        _BALANCER,
        "_verdict",
        "retry_after=outcome.retry_after",
        "retry_after=None",
        _BACK + "test_no_connection_a_retry_after_and_an_error_event_reach_the_health",
    ),
    Mutation(
        "the health does not hear of error events",
        _BALANCER,
        "_verdict",
        "error_code=outcome.error_code",
        "error_code=None",
        _BACK + "test_no_connection_a_retry_after_and_an_error_event_reach_the_health",
    ),
    # One attempt.
    Mutation(
        "an attempt may end twice",
        _ATTEMPT,
        "Attempt.ended",
        "if self.over:",
        "if False:",
        _HEALTH + "test_an_attempt_ends_once",
    ),
    Mutation(
        "the first content is no success, only the end is",
        _ATTEMPT,
        "Attempt.content",
        "self._succeed()",
        "pass",
        _HEALTH + "test_after_ten_seconds_one_probe_at_a_time_and_two_successes_bring_it_back",
    ),
    Mutation(
        "an answer that is no stream is no success",
        _ATTEMPT,
        "Attempt.ended",
        "self._succeed()",
        "pass",
        _HEALTH + "test_a_success_ends_the_row",
    ),
    Mutation(
        "content that comes after the end is a success",
        _ATTEMPT,
        "Attempt.content",
        "if self.over:",
        "if False:",
        _HEALTH + "test_content_after_the_end_says_nothing",
    ),
    Mutation(
        "a stream that breaks off counts as a success too",
        _ATTEMPT,
        "Attempt.ended",
        "self._member.outlier.share.recant(self._tick)",
        "pass",
        _HEALTH + "test_streams_that_break_off_count_once_and_as_failures",
    ),
    Mutation(
        "the end of an attempt is not told",
        _ATTEMPT,
        "Attempt.ended",
        "self._keeper.ended(self._member, self, verdict)",
        "pass",
        _HEALTH + "test_two_failures_to_connect_within_ten_seconds_eject",
    ),
    Mutation(
        "a connection does not show that an endpoint can be connected to",
        _ATTEMPT,
        "Attempt.connected",
        "self._member.outlier.unreachable = False",
        "pass",
        _HEALTH + "test_once_one_connects_again_all_may_go_there_though_no_answer_came_yet",
    ),
    # The reasons of ejections.
    Mutation(
        "failures to connect do not eject",
        _OUTLIER,
        "Outlier.refused",
        "if enough or self.phase is Phase.HALF_OPEN:",
        "if self.phase is Phase.HALF_OPEN:",
        _HEALTH + "test_two_failures_to_connect_within_ten_seconds_eject",
    ),
    Mutation(
        "a probe that cannot connect leaves the endpoint half-open",
        _OUTLIER,
        "Outlier.refused",
        "if enough or self.phase is Phase.HALF_OPEN:",
        "if enough:",
        _HEALTH + "test_one_failure_to_connect_ends_the_half_open_state",
    ),
    Mutation(
        "failures to connect add up for ever",
        _OUTLIER,
        "Outlier.refused",
        "if at > now - self._config.connect_window_s",
        "if True",
        _HEALTH + "test_two_failures_to_connect_far_apart_do_not_eject",
    ),
    Mutation(
        "a success does not tell two failures to connect apart",
        _OUTLIER,
        "Outlier.succeeded",
        "self._refusals.clear()",
        "pass",
        _HEALTH + "test_a_success_between_two_failures_to_connect_tells_them_apart",
    ),
    Mutation(
        "failures in a row do not eject",
        _OUTLIER,
        "Outlier.failed",
        'return self._found("failures", f"{self._failures} failures in a row")',
        "pass",
        _HEALTH + "test_failures_in_a_row_eject",
    ),
    Mutation(
        "a success does not end the row",
        _OUTLIER,
        "Outlier.succeeded",
        "self._failures = 0",
        "pass",
        _HEALTH + "test_a_success_ends_the_row",
    ),
    Mutation(
        "the share of failures does not eject",
        _OUTLIER,
        "Outlier._share_found",
        'return self._found("failure_share", f"{bad} of {total} requests failed")',
        "return None",
        _HEALTH + "test_half_of_ten_requests_failing_ejects",
    ),
    Mutation(
        "failures do not count for the share",
        _OUTLIER,
        "Outlier.failed",
        "self.share.bad(now)",
        "pass",
        _HEALTH + "test_half_of_ten_requests_failing_ejects",
    ),
    Mutation(
        "failures to connect do not count for the share",
        _OUTLIER,
        "Outlier.refused",
        "self.share.bad(now)",
        "pass",
        _HEALTH + "test_failures_to_connect_count_for_the_share",
    ),
    Mutation(
        "failures of before an ejection count after it",
        _OUTLIER,
        "Outlier._out",
        "self.share.clear()",
        "pass",
        _HEALTH + "test_failures_from_before_an_ejection_do_not_count_after_it",
    ),
    Mutation(
        "a probe that fails does not eject again",
        _OUTLIER,
        "Outlier.failed",
        'return self._found("probe_failed", "a request failed that was to show its health")',
        "pass",
        _HEALTH + "test_a_failed_probe_doubles_the_ejection_up_to_two_minutes",
    ),
)
