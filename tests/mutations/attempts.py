"""What the addon makes of an attempt: if there is another, and what the health is told."""

from tests.mutations.model import Mutation

_EXCHANGE = "addons/exchange.py"
_HELD = "addons/failover_held.py"
_HOOKS = "addons/failover_hooks.py"
_STREAM = "addons/failover_stream.py"

_CUT = (
    "tests/addon/test_error_events.py::"
    "test_an_error_event_counts_the_same_though_its_stream_is_cut[vLLM, full]"
)
_HOLD = "tests/addon/test_hold.py::"
_PROGRESS = "tests/addon/test_progress.py::"
_VERDICTS = "tests/addon/test_verdicts.py::"

MUTATIONS = (
    # The addon acts by the verdict, and tells the health what became of each attempt.
    Mutation(
        "a first byte that came too late is taken for a closed connection",
        _HOOKS,
        "FailoverHooks.ai_lb_retry",
        "question.failure = replace(question.failure, cause=Cause.TIMED_OUT)",
        "pass",
        _VERDICTS + "test_a_first_byte_that_is_too_late_is_no_failure_of_the_endpoint",
    ),
    Mutation(
        "the verdict on a retry is not asked for",
        _HOOKS,
        "FailoverHooks.ai_lb_retry",
        "if exchange.retries.judge(failure) is not Verdict.RETRY:",
        "if False:",
        _VERDICTS + "test_what_was_sent_is_sent_again_once",
    ),
    Mutation(
        "a retry is not spent",
        _HOOKS,
        "FailoverHooks.ai_lb_retry",
        "exchange.retries.spend(failure)",
        "pass",
        _VERDICTS + "test_what_was_sent_is_sent_again_once",
    ),
    Mutation(
        "the health does not hear that a connection stands",
        _HOOKS,
        "FailoverHooks.server_connected",
        "self._balancer.connected(exchange.placement)",
        "pass",
        _VERDICTS + "test_a_connection_and_the_first_content_are_told",
    ),
    Mutation(
        "a time-out of ours is charged to the endpoint",
        _EXCHANGE,
        "Exchange.failed_outcome",
        "_ENDINGS.get(failure.cause, Ending.UPSTREAM_FAILED)",
        "Ending.UPSTREAM_FAILED",
        _VERDICTS + "test_a_first_byte_that_is_too_late_is_no_failure_of_the_endpoint",
    ),
    Mutation(
        "a refused connection is told as a reset",
        _EXCHANGE,
        "Exchange.failed_outcome",
        "connected=failure.cause not in (Cause.CONNECT, Cause.CONNECT_TIMEOUT)",
        "connected=True",
        _VERDICTS + "test_a_refused_connection_is_told_as_such",
    ),
    Mutation(
        "the code of an error event is not told",
        _EXCHANGE,
        "Exchange.failed_outcome",
        "error_code=failure.status if error_event else None",
        "error_code=None",
        _VERDICTS + "test_an_error_event_is_told_with_its_code",
    ),
    Mutation(
        "the Retry-After of a failed attempt is not told",
        _EXCHANGE,
        "Exchange.attempt_failed",
        'response.headers.get("retry-after") if response else None',
        "None",
        _VERDICTS + "test_a_busy_endpoint_is_told_with_its_retry_after",
    ),
    Mutation(
        "the Retry-After that is passed on is not told",
        _EXCHANGE,
        "Exchange.response_started",
        'self._retry_after = headers.get("retry-after")',
        "pass",
        _VERDICTS + "test_a_replayed_request_is_told_with_its_retry_after",
    ),
    Mutation(
        "the first content of a stream is not told",
        _EXCHANGE,
        "Exchange._heard",
        "self._balancer.content(self.placement)",
        "pass",
        _VERDICTS + "test_a_connection_and_the_first_content_are_told",
    ),
    Mutation(
        "the head of an answer that is no stream is not told",
        _EXCHANGE,
        "Exchange.response_started",
        "self._balancer.content(self.placement)",
        "pass",
        _VERDICTS + "test_the_head_of_an_answer_that_is_no_stream_is_told",
    ),
    Mutation(
        "an error event whose stream is cut counts as its status, which is good",
        _STREAM,
        "FailoverStream._failure_of",
        "if held.error is None:",
        "if True:",
        _CUT,
    ),
    Mutation(
        "the Retry-After of a response that is cut is lost",
        _STREAM,
        "FailoverStream.handle_protocol_error",
        ", held.head.response",
        "",
        _CUT,
    ),
    Mutation(
        "no response is held for its status",
        _HOOKS,
        "FailoverHooks._hold_s",
        "DRAIN_S if exchange.retries.holds(response.status_code) else None",
        "None",
        _VERDICTS + "test_each_status_that_the_route_lists_is_tried_elsewhere",
    ),
    Mutation(
        "each response that is an error is held, and asked about",
        _HOOKS,
        "FailoverHooks._hold_s",
        "DRAIN_S if exchange.retries.holds(response.status_code) else None",
        "DRAIN_S",
        _VERDICTS + "test_what_is_not_tried_elsewhere_is_not_held",
    ),
    Mutation(
        "a response is held for which there is no other try",
        "lb_core/retry.py",
        "Retries.holds",
        "self.judge(Failure(Cause.STATUS, status=status)) is Verdict.RETRY",
        "True",
        _VERDICTS + "test_what_is_not_tried_elsewhere_is_not_held",
    ),
    # Timers of an exchange, and what is read of a stream.
    Mutation(
        "the time-out of the first byte runs on when it came",
        _EXCHANGE,
        "Exchange._heard",
        "self._stop_first_byte()\n            self._balancer",
        "self._balancer",
        _VERDICTS + "test_a_first_byte_in_time_is_all_that_its_time_out_asks",
    ),
    Mutation(
        "an event of an API that we do not know does not end the time-out of the first byte",
        _EXCHANGE,
        "Exchange._heard",
        "self._stop_first_byte()  # of",
        "pass  # of",
        _HOLD + "test_where_content_cannot_be_told_any_event_ends_the_time_out",
    ),
    Mutation(
        "the time-out of the first byte runs on when an answer in one piece begins",
        _EXCHANGE,
        "Exchange.response_started",
        "self._stop_first_byte()",
        "pass",
        _PROGRESS + "test_an_answer_that_begins_in_time_may_take_its_time",
    ),
    Mutation(
        "the time-out of the first byte runs on over what is not read",
        _EXCHANGE,
        "Exchange._feed",
        "self._stop_first_byte()",
        "pass",
        _PROGRESS + "test_a_stream_that_cannot_be_read_is_not_timed_out",
    ),
    Mutation(
        "the time-out of the first byte is never stopped",
        _EXCHANGE,
        "Exchange._stop_first_byte",
        "self._first_byte.stop()",
        "pass",
        _VERDICTS + "test_a_first_byte_in_time_is_all_that_its_time_out_asks",
    ),
    Mutation(
        "the time-out of the first byte runs on after the end",
        _EXCHANGE,
        "Exchange.ended",
        "self._stop_first_byte()",
        "pass",
        _PROGRESS + "test_no_timer_runs_after_the_end_of_what_was_never_answered",
    ),
    Mutation(
        "timers run on after the end",
        _EXCHANGE,
        "Exchange.ended",
        "self._watch.stop()",
        "pass",
        _VERDICTS + "test_no_timer_runs_after_the_end",
    ),
    Mutation(
        "a silent stream is not cut",
        _EXCHANGE,
        "Exchange.response_started",
        "idle_s=self._idle_s",
        "idle_s=None",
        _VERDICTS + "test_a_stream_that_is_silent_is_cut_and_charged_to_the_endpoint",
    ),
    Mutation(
        "an event that the end of a stream completes is not read",
        _EXCHANGE,
        "Exchange._feed",
        "meter.close()",
        "pass",
        _VERDICTS + "test_an_event_that_only_the_end_completes_is_read",
    ),
    Mutation(
        "a held event that the end of its stream completes is not read",
        _HELD,
        "Held.take",
        "self._meter.close()",
        "pass",
        "tests/addon/test_failover.py::test_a_failed_endpoint_is_replaced"
        "[short-200 and an SSE error without an empty line]",
    ),
    Mutation(
        "the silent streams of an endpoint that refuses are not cut",
        _HOOKS,
        "FailoverHooks._close_silent",
        "cut(exchange.flow)",
        "pass",
        _VERDICTS + "test_the_silent_streams_of_an_endpoint_that_refuses_are_cut",
    ),
    Mutation(
        "the silent streams of an endpoint that refused once are cut",
        _HOOKS,
        "FailoverHooks.server_connected",
        "self._reached(exchange.placement.endpoint.name)",
        "pass",
        _VERDICTS + "test_the_silent_streams_of_an_endpoint_that_is_reached_again_are_not_cut",
    ),
    Mutation(
        "the watch over silent streams goes on though their endpoint is reached",
        _HOOKS,
        "FailoverHooks._reached",
        "timer.cancel()",
        "pass",
        _VERDICTS + "test_the_silent_streams_of_an_endpoint_that_is_reached_again_are_not_cut",
    ),
    Mutation(
        "the last event is dropped where its empty line is missing",
        "lb_core/sse.py",
        "SseMeter.close",
        "self._event(name, data, self._now)",
        "pass",
        "tests/core/test_sse.py::test_a_last_event_without_its_empty_line_counts_if_it_is_whole",
    ),
)
