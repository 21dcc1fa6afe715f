"""Who is ejected for its silence, and what brings it back."""

from tests.mutations.model import Mutation

_ASSEMBLY = "lb_core/assembly.py"
_BOARD = "lb_core/engines/board.py"
_MONITOR = "lb_core/health/monitor.py"
_OUTLIER = "lb_core/health/outlier.py"
_REPORTS = "lb_core/health/reports.py"
_VERDICT = "lb_core/health/verdict.py"
_WATCH = "lb_core/engines/watch.py"

_BOARDS = "tests/core/test_engines_board.py::"
_HEALTH = "tests/core/test_health.py::"
_PROBES = "tests/core/test_health_silence_probes.py::"
_SILENCE_TESTS = "tests/core/test_health_silence.py::"

MUTATIONS = (
    # What our own time-outs say.
    Mutation(
        "a time-out of ours is judged as any other end",
        _VERDICT,
        "judge",
        "if outcome.ending is Ending.TIMED_OUT:",
        "if False:",
        "tests/core/test_health_verdict.py::test_an_ending_and_a_status_make_a_verdict",
    ),
    Mutation(
        "a time-out of ours says nothing at all",
        _VERDICT,
        "judge",
        "return TIMED_OUT",
        "return IGNORED",
        "tests/core/test_health_verdict.py::test_an_ending_and_a_status_make_a_verdict",
    ),
    # The ejection, and its end.
    Mutation(
        "time does not show silence",
        _MONITOR,
        "Health.tick",
        "self._eject(member, member.outlier.silent(now), now)",
        "pass",
        _SILENCE_TESTS + "test_an_endpoint_whose_streams_wait_for_more_than_two_minutes_gets_no_more",
    ),
    Mutation(
        "the silent are not ejected",
        _OUTLIER,
        "Outlier.silent",
        'return self._found(SILENT, "no token came, though requests waited")',
        "return None",
        _SILENCE_TESTS + "test_an_endpoint_whose_streams_wait_for_more_than_two_minutes_gets_no_more",
    ),
    Mutation(
        "while streams wait the ejection ends",
        _OUTLIER,
        "Outlier.silent",
        "self.until = max(self.until, now + self._config.max_ejection_s)",
        "pass",
        _PROBES + "test_while_streams_wait_there_is_no_probe_and_two_minutes_afterwards_there_is_one",
    ),
    Mutation(
        "silence makes other ejections longer",
        _OUTLIER,
        "Outlier.silent",
        "if self.reason == SILENT:",
        "if True:",
        _SILENCE_TESTS + "test_an_ejection_for_failures_ends_in_time_though_streams_wait",
    ),
    Mutation(
        "an ejection for silence may be short",
        _OUTLIER,
        "Outlier.eject",
        "if reason == SILENT:",
        "if False:",
        _PROBES + "test_a_probe_that_gets_nothing_puts_it_out_for_two_minutes_at_once",
    ),
    Mutation(
        "a token does not bring an endpoint back",
        _OUTLIER,
        "Outlier.alive",
        "self._enter(Phase.HEALTHY, now)",
        "pass",
        _SILENCE_TESTS + "test_a_token_of_any_stream_brings_it_back_and_it_starts_slowly",
    ),
    Mutation(
        "a token ends any ejection",
        _OUTLIER,
        "Outlier.alive",
        " or self.reason != SILENT",
        "",
        _SILENCE_TESTS + "test_other_ejections_are_not_ended_by_a_token",
    ),
    Mutation(
        "the silence does not hear of a token",
        _MONITOR,
        "Health.alive",
        "member.silence.alive(now)",
        "pass",
        _SILENCE_TESTS + "test_a_stream_of_half_an_hour_with_pauses_of_100_s_is_no_silence",
    ),
    Mutation(
        "the ejection does not hear of a token",
        _MONITOR,
        "Health.alive",
        "if member.outlier.alive(now):",
        "if False:",
        _SILENCE_TESTS + "test_a_token_of_any_stream_brings_it_back_and_it_starts_slowly",
    ),
    Mutation(
        "what says something again gets its full share at once",
        _MONITOR,
        "Health.alive",
        "member.ramp_from = now",
        "pass",
        _SILENCE_TESTS + "test_a_token_of_any_stream_brings_it_back_and_it_starts_slowly",
    ),
    Mutation(
        "that it says something again is told to nobody",
        _MONITOR,
        "Health.alive",
        "self._fleet.recovered(member.name)",
        "pass",
        _HEALTH + "test_what_was_silent_and_says_something_is_told_to_the_others",
    ),
    Mutation(
        "a time-out of ours is no sign",
        _MONITOR,
        "Health.ended",
        "{Kind.IGNORED, Kind.TIMED_OUT}",
        "{Kind.IGNORED}",
        _SILENCE_TESTS + "test_an_endpoint_of_which_only_time_outs_come_is_silent_within_130_s",
    ),
    Mutation(
        "a client that left is no sign",
        _MONITOR,
        "Health.ended",
        "{Kind.IGNORED, Kind.TIMED_OUT}",
        "{Kind.TIMED_OUT}",
        _PROBES + "test_a_probe_that_gets_nothing_puts_it_out_again",
    ),
    Mutation(
        "the silence does not hear of what was given up",
        _MONITOR,
        "Health._given_up",
        "member.silence.given_up(now, attempt.started, silent_s)",
        "pass",
        _SILENCE_TESTS + "test_an_endpoint_of_which_only_time_outs_come_is_silent_within_130_s",
    ),
    Mutation(
        "a client that has read enough is a sign of silence",
        _MONITOR,
        "Health._given_up",
        "attempt.answered or ",
        "",
        _SILENCE_TESTS + "test_clients_that_leave_what_was_answered_or_is_no_inference_are_no_silence",
    ),
    Mutation(
        "what a front end does not answer is a sign of silence",
        _MONITOR,
        "Health._given_up",
        " or attempt.work is Work.OTHER",
        "",
        _SILENCE_TESTS + "test_clients_that_leave_what_was_answered_or_is_no_inference_are_no_silence",
    ),
    Mutation(
        "a probe that gets nothing changes nothing",
        _MONITOR,
        "Health._given_up",
        "self._eject(member, outlier.silent(now), now)",
        "pass",
        _PROBES + "test_a_probe_that_gets_nothing_puts_it_out_again",
    ),
    Mutation(
        "a probe that is timed out soon changes nothing",
        _MONITOR,
        "Health._given_up",
        "verdict.kind is Kind.TIMED_OUT or ",
        "",
        _PROBES + "test_a_probe_that_gets_nothing_puts_it_out_again",
    ),
    Mutation(
        "a probe whose client leaves changes nothing",
        _MONITOR,
        "Health._given_up",
        " or now - attempt.started >= _PROBED * silent_s",
        "",
        _PROBES + "test_a_probe_that_gets_nothing_puts_it_out_again",
    ),
    Mutation(
        "any request that gets nothing counts as the probe",
        _MONITOR,
        "Health._given_up",
        " and member.probe is attempt",
        "",
        _PROBES + "test_what_waited_before_the_probe_does_not_end_in_its_place",
    ),
    Mutation(
        "a probe after another ejection has to say something soon",
        _MONITOR,
        "Health._given_up",
        " and outlier.reason == SILENT",
        "",
        _PROBES + "test_a_probe_after_failures_whose_client_leaves_changes_nothing",
    ),
    Mutation(
        "the only endpoint is ejected by whatever is found",
        _MONITOR,
        "Health._eject",
        " and self._may_eject(member, reason)",
        "",
        _SILENCE_TESTS + "test_the_only_endpoint_and_more_than_half_are_not_ejected_for_silence",
    ),
    # What pages show.
    Mutation(
        "a step on its page is no sign of life",
        _REPORTS,
        "Reports.stepped",
        "self.alive(member)",
        "pass",
        _SILENCE_TESTS + "test_a_step_on_its_page_brings_it_back",
    ),
    Mutation(
        "a step on a page is not seen",
        _WATCH,
        "Watch._stalls",
        "self._pulse is not None and pulse != self._pulse",
        "False",
        _BOARDS + "test_a_step_is_told_and_a_first_page_is_none",
    ),
    Mutation(
        "the first page of an engine is a step",
        _WATCH,
        "Watch._stalls",
        "self._pulse is not None and ",
        "",
        _BOARDS + "test_a_step_is_told_and_a_first_page_is_none",
    ),
    Mutation(
        "a step on a page without a counter is told again and again",
        _WATCH,
        "Watch._stalls",
        "self.stepped = False",
        "pass",
        _BOARDS + "test_a_step_is_told_and_a_first_page_is_none",
    ),
    Mutation(
        "a step on a page is told to nobody",
        _BOARD,
        "Board.take",
        "self.on_step(scrape.endpoint)",
        "pass",
        _BOARDS + "test_a_step_is_told_and_a_first_page_is_none",
    ),
    Mutation(
        "the health does not hear of steps",
        _ASSEMBLY,
        "Assembly._new",
        "board.on_step = health.stepped",
        "pass",
        "tests/core/test_runtime_parts.py::test_a_step_of_an_engine_reaches_the_health",
    ),
)
