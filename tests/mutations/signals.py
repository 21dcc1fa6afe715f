"""What takes an endpoint out but failures: rest, pages, checks, people; and its load when it returns."""

from tests.mutations.model import Mutation

_ASSEMBLY = "lb_core/assembly.py"
_CHECKS = "lb_core/health/checks.py"
_MEMBER = "lb_core/health/member.py"
_MONITOR = "lb_core/health/monitor.py"
_OUTLIER = "lb_core/health/outlier.py"
_REPORTS = "lb_core/health/reports.py"
_SELECTION = "lb_core/health/selection.py"
_WATCH = "lb_core/engines/watch.py"

_ENGINES = "tests/core/test_engines_watch.py::"
_HEALTH = "tests/core/test_health.py::"
_RUNTIME = "tests/core/test_runtime_parts.py::"

MUTATIONS = (
    # Rest, slow start, ghost load.
    Mutation(
        "a busy endpoint does not rest",
        _MONITOR,
        "Health.ended",
        "member.resting_until = max(member.resting_until, now + verdict.rest_s)",
        "pass",
        _HEALTH + "test_a_busy_endpoint_gets_nothing_while_it_rests",
    ),
    Mutation(
        "an endpoint that rests is chosen all the same",
        _SELECTION,
        "select",
        "if member.quiet or not member.resting(now)",
        "if True",
        _HEALTH + "test_a_busy_endpoint_gets_nothing_while_it_rests",
    ),
    Mutation(
        "when all rest nobody is offered",
        _SELECTION,
        "select",
        "if pool:",
        "if False:",
        _HEALTH + "test_when_all_rest_all_are_offered",
    ),
    Mutation(
        "what returns gets its full share at once",
        _MONITOR,
        "Health.succeeded",
        "member.ramp_from = now",
        "pass",
        _HEALTH + "test_slow_start_rises_from_a_tenth_to_all_in_a_minute",
    ),
    Mutation(
        "what is new gets its full share at once",
        _REPORTS,
        "Reports.members",
        "member.ramp_from = now",
        "pass",
        _HEALTH + "test_state_is_kept_by_name_over_a_reload",
    ),
    Mutation(
        "what was restarted gets its full share at once",
        _REPORTS,
        "Reports.restarted",
        "member.ramp_from = self._clock()",
        "pass",
        _HEALTH + "test_what_returns_starts_slowly",
    ),
    Mutation(
        "what passes its checks again gets its full share at once",
        _REPORTS,
        "Reports.checked",
        "member.ramp_from = self._clock()",
        "pass",
        _HEALTH + "test_what_returns_starts_slowly",
    ),
    Mutation(
        "what wakes or is undrained gets its full share at once",
        _REPORTS,
        "Reports._set",
        "member.ramp_from = self._clock()",
        "pass",
        _HEALTH + "test_what_returns_starts_slowly",
    ),
    Mutation(
        "a failure is no load",
        _MONITOR,
        "Health._failed",
        "member.ghosts.append(now + ghost_s)",
        "pass",
        _HEALTH + "test_a_failure_counts_as_load_for_the_mean_duration",
    ),
    Mutation(
        "a failure is load for ever",
        _MEMBER,
        "Member.ghost_load",
        "while self.ghosts and self.ghosts[0] <= now:",
        "while False:",
        _HEALTH + "test_a_failure_counts_as_load_for_the_mean_duration",
    ),
    Mutation(
        "a success that was taken back counts",
        _OUTLIER,
        "FailureShare.recant",
        "self._good[index] -= 1",
        "pass",
        _HEALTH + "test_streams_that_break_off_count_once_and_as_failures",
    ),
    # What people, pages and checks tell.
    Mutation(
        "a drained endpoint gets requests",
        _MEMBER,
        "Member.present",
        "not self.draining and ",
        "",
        _HEALTH + "test_the_only_endpoint_is_used_though_it_stalls_but_not_asleep_or_drained",
    ),
    Mutation(
        "a sleeping endpoint gets requests",
        _MEMBER,
        "Member.present",
        " and not self.sleeping",
        "",
        _HEALTH + "test_the_only_endpoint_is_used_though_it_stalls_but_not_asleep_or_drained",
    ),
    Mutation(
        "an endpoint stays drained",
        _REPORTS,
        "Reports.undrain",
        'self._set(name, "draining", False)',
        "pass",
        _HEALTH + "test_the_only_endpoint_is_used_though_it_stalls_but_not_asleep_or_drained",
    ),
    Mutation(
        "a stalled endpoint gets requests",
        _MEMBER,
        "Member.sound",
        " and not self.stalled",
        "",
        _HEALTH + "test_metrics_take_an_endpoint_out_and_bring_it_back_slowly",
    ),
    Mutation(
        "an endpoint that fails its checks gets requests",
        _MEMBER,
        "Member.sound",
        " and not self.failing_checks",
        "",
        _HEALTH + "test_active_checks_take_out_after_three_and_bring_back_after_two",
    ),
    Mutation(
        "good checks bring nobody back",
        _MEMBER,
        "Member.checked",
        "self.failing_checks = False",
        "pass",
        _HEALTH + "test_active_checks_take_out_after_three_and_bring_back_after_two",
    ),
    Mutation(
        "good checks do not show that an endpoint can be connected to",
        _REPORTS,
        "Reports.checked",
        "member.outlier.unreachable = False",
        "pass",
        _HEALTH + "test_an_answer_or_good_checks_show_that_an_endpoint_can_be_connected_to",
    ),
    Mutation(
        "without checks an endpoint goes on failing them",
        _REPORTS,
        "Reports.configure",
        "member.failing_checks = False",
        "pass",
        _HEALTH + "test_parameters_can_change_while_it_runs",
    ),
    Mutation(
        "a check that fails is an error of the balancer",
        _CHECKS,
        "Checker.check",
        "(OSError, ValueError)",
        "ValueError",
        "tests/core/test_health_checks.py::test_an_endpoint_that_says_nothing_or_never_stops_is_bad",
    ),
    Mutation(
        "the connection of a check stays open",
        _CHECKS,
        "Checker._ask",
        "writer.transport.abort()",
        "pass",
        "tests/core/test_health_checks.py::test_the_connection_is_closed_after_the_check",
    ),
    Mutation(
        "nobody hears that an engine sleeps or wakes",
        _WATCH,
        "Watch.observe",
        "changes.append(Change.ASLEEP if self.asleep else Change.AWAKE)",
        "pass",
        _ENGINES + "test_sleep_is_told_at_both_ends_and_a_sleeper_is_not_stalled",
    ),
    Mutation(
        "an engine that makes no step is never stalled",
        _WATCH,
        "Watch.observe",
        "changes.append(Change.STALLED if stalled else Change.MOVING)",
        "pass",
        _ENGINES + "test_an_engine_that_has_work_and_makes_no_step_for_two_windows_is_stalled",
    ),
    Mutation(
        "a step does not end a stall",
        _WATCH,
        "Watch._stalls",
        " or pulse != self._pulse",
        "",
        _ENGINES + "test_a_stalled_engine_that_moves_is_told_once",
    ),
    Mutation(
        "a restart is not seen",
        _WATCH,
        "Watch.observe",
        "changes.append(Change.RESTARTED)",
        "pass",
        _ENGINES + "test_falling_counters_are_a_restart_and_end_a_stall",
    ),
    Mutation(
        "the health does not hear that an engine sleeps",
        _ASSEMBLY,
        "_engine_changed",
        "cluster.health.sleeping(endpoint, change is EngineChange.ASLEEP)",
        "pass",
        _RUNTIME + "test_what_pages_tell_reaches_the_health",
    ),
    Mutation(
        "the health does not hear that an engine is stalled",
        _ASSEMBLY,
        "_engine_changed",
        "cluster.health.stalled(endpoint, change is EngineChange.STALLED)",
        "pass",
        _RUNTIME + "test_what_pages_tell_reaches_the_health",
    ),
    Mutation(
        "the health does not hear that an engine was restarted",
        _ASSEMBLY,
        "_engine_changed",
        "cluster.health.restarted(endpoint)",
        "pass",
        _RUNTIME + "test_what_pages_tell_reaches_the_health",
    ),
)
