"""What is held back or kept for no longer than it must be."""

from tests.mutations.model import Mutation

_AI_LB = "addons/ai_lb.py"
_BOARD = "lb_core/engines/board.py"
_CLUSTER = "lb_core/cluster.py"
_EXCHANGE = "addons/exchange.py"
_PARENT = "addons/failover/connections.py"
_RUNTIME = "lb_core/runtime.py"
_STREAM = "addons/failover/stream.py"
_TASKS = "lb_core/tasks.py"
_VISITS = "lb_core/visits.py"
_WATCH = "lb_core/engines/watch.py"

_BOARDS = "tests/core/test_engines_board.py::"
_HOLD = "tests/addon/test_hold.py::"
_PARTS = "tests/core/test_runtime_parts.py::"
_RELOAD = "tests/core/test_reload.py::"
_UPGRADES = "tests/addon/test_upgrades.py::"
_VISITED = "tests/core/test_visits.py::"

MUTATIONS = (
    # A stream that is held back.
    Mutation(
        "a stream is held for as long as it takes",
        _STREAM,
        "FailoverStream._hold",
        "if seconds < inf:",
        "if False:",
        _HOLD + "test_headers_wait_for_the_first_event_for_a_limited_time",
    ),
    Mutation(
        "a stream is passed on at once",
        _STREAM,
        "FailoverStream.state_wait_for_response_headers",
        "yield from self._hold(event, hold_s)",
        "yield from super().state_wait_for_response_headers(event)",
        _HOLD + "test_an_error_while_it_is_held_is_tried_elsewhere",
    ),
    Mutation(
        "the end of the holding changes nothing",
        _STREAM,
        "FailoverStream._waited",
        "yield from self._judge(held) if held.failed else self._pass_on(held)",
        "yield from ()",
        _HOLD + "test_headers_wait_for_the_first_event_for_a_limited_time",
    ),
    Mutation(
        "a timer of the holding keeps its request",
        _STREAM,
        "FailoverStream._stop_waiting",
        "self._parent.silence(self._timer)",
        "pass",
        _HOLD + "test_requests_that_ended_are_not_kept_by_their_timers",
    ),
    Mutation(
        "a silenced timer keeps its request",
        _PARENT,
        "EndpointConnections.silence",
        "self.command_sources[timer] = self._sink",
        "pass",
        _HOLD + "test_requests_that_ended_are_not_kept_by_their_timers",
    ),
    Mutation(
        "a stream that is passed on waits on",
        _STREAM,
        "FailoverStream._pass_on",
        "self._stop_waiting()",
        "pass",
        _HOLD + "test_requests_that_ended_are_not_kept_by_their_timers",
    ),
    Mutation(
        "an error that is judged waits on",
        _STREAM,
        "FailoverStream._judge",
        "self._stop_waiting()",
        "pass",
        _HOLD + "test_requests_that_ended_are_not_kept_by_their_timers",
    ),
    Mutation(
        "a connection that failed waits on",
        _STREAM,
        "FailoverStream.handle_protocol_error",
        "self._stop_waiting()",
        "pass",
        _HOLD + "test_requests_that_ended_are_not_kept_by_their_timers",
    ),
    Mutation(
        "a second wait leaves the first",
        _STREAM,
        "FailoverStream._wait",
        "self._stop_waiting()",
        "pass",
        _HOLD + "test_requests_that_ended_are_not_kept_by_their_timers",
    ),
    Mutation(
        "a cut for lateness is told as a failure",
        _EXCHANGE,
        "Exchange._outcome",
        "ending, error = Ending.TIMED_OUT, str(Cause.TIMED_OUT)",
        "pass",
        _HOLD + "test_an_engine_that_freezes_after_its_headers_is_cut_off_in_time",
    ),
    # Messages of upgraded connections.
    Mutation(
        "messages are kept",
        _AI_LB,
        "_forget_all_but_the_last",
        "del messages[:-_MESSAGES]",
        "pass",
        _UPGRADES + "test_of_a_long_websocket_session_the_last_messages_are_kept",
    ),
    Mutation(
        "messages are forgotten against the option",
        _AI_LB,
        "_forget_all_but_the_last",
        "if not ctx.options.store_streamed_bodies:",
        "if True:",
        _UPGRADES + "test_all_messages_are_kept_where_streams_are",
    ),
    Mutation(
        "messages of a websocket are kept",
        _AI_LB,
        "AiLb.websocket_message",
        "_forget_all_but_the_last(flow.websocket.messages)",
        "pass",
        _UPGRADES + "test_of_a_long_websocket_session_the_last_messages_are_kept",
    ),
    Mutation(
        "pieces of another protocol are kept",
        _AI_LB,
        "AiLb.tcp_message",
        "_forget_all_but_the_last(flow.messages)",
        "pass",
        _UPGRADES + "test_of_another_upgraded_connection_the_last_pieces_are_kept",
    ),
    # Verdicts of pages, and what is of no use any more.
    Mutation(
        "of engines that nobody visits any more verdicts stand",
        _VISITS,
        "Visits.aim",
        "cluster.board.forget()",
        "pass",
        _VISITED + "test_a_verdict_ends_when_the_engine_is_not_asked_any_more_or_its_page_is_gone",
    ),
    Mutation(
        "visits go on after the end of a runtime",
        _VISITS,
        "Visits.close",
        "await asyncio.to_thread(self._scraper.stop)",
        "pass",
        _PARTS + "test_the_scraper_ends_with_its_runtime",
    ),
    Mutation(
        "a board that forgets keeps its verdicts",
        _BOARD,
        "Board.forget",
        "self._lapse(inf)",
        "pass",
        _BOARDS + "test_of_engines_that_are_not_visited_any_more_nothing_is_known",
    ),
    Mutation(
        "a board that forgets keeps its pages",
        _BOARD,
        "Board.forget",
        "engine.metrics, engine.watch, engine.missing = None, Watch(), ()",
        "pass",
        _BOARDS + "test_of_engines_that_are_not_visited_any_more_nothing_is_known",
    ),
    Mutation(
        "verdicts of pages stand for ever",
        _BOARD,
        "Board.tick",
        "self._lapse(self._clock() - self.stale_after_s)",
        "pass",
        _BOARDS + "test_sleep_is_known_until_it_is_too_old",
    ),
    Mutation(
        "verdicts of pages that are too old stand",
        _BOARD,
        "Board._lapse",
        "engine.watch.lapse(before)",
        "()",
        _BOARDS + "test_sleep_is_known_until_it_is_too_old",
    ),
    Mutation(
        "the end of a verdict is told to nobody",
        _BOARD,
        "Board._lapse",
        "self.on_change(name, change)",
        "pass",
        _BOARDS + "test_sleep_is_known_until_it_is_too_old",
    ),
    Mutation(
        "a sleep that no page tells any more lasts",
        _WATCH,
        "Watch.lapse",
        "changes.append(Change.AWAKE)",
        "pass",
        "tests/core/test_engines_watch.py::test_a_verdict_that_no_page_gives_any_more_lapses",
    ),
    Mutation(
        "a stall that no page tells any more lasts",
        _WATCH,
        "Watch.lapse",
        "changes.append(Change.MOVING)",
        "pass",
        "tests/core/test_engines_watch.py::test_a_stall_that_lapsed_is_told_by_the_next_page_that_shows_no_step",
    ),
    Mutation(
        "the runtime does not let verdicts lapse",
        _RUNTIME,
        "Runtime._tick",
        "cluster.board.tick()",
        "pass",
        _VISITED + "test_a_verdict_ends_when_the_engine_is_not_asked_any_more_or_its_page_is_gone",
    ),
    Mutation(
        "the runtime does not let the health see the time",
        _RUNTIME,
        "Runtime._tick",
        "cluster.health.tick()",
        "pass",
        _PARTS + "test_the_health_sees_the_time_though_there_are_no_requests",
    ),
    Mutation(
        "the link of a cluster that left stays",
        _RUNTIME,
        "Runtime._tick",
        "await self._assembly.close_unused_links((*self.clusters.values(), *self._retired))",
        "pass",
        _RELOAD + "test_a_link_to_a_redis_that_is_not_used_any_more_is_closed",
    ),
    Mutation(
        "prompts of a policy that is gone are remembered",
        _CLUSTER,
        "Cluster.keep_finders",
        'spawn(self._finders.pop(policy).close(), name=f"end of the prefixes of {self.name}")',
        "pass",
        _RELOAD + "test_prompts_remembered_for_a_policy_that_is_gone_are_forgotten",
    ),
    Mutation(
        "notes of prompts of a policy that is gone are lost",
        _CLUSTER,
        "Cluster.keep_finders",
        'spawn(self._finders.pop(policy).close(), name=f"end of the prefixes of {self.name}")',
        "self._finders.pop(policy)",
        _PARTS + "test_a_policy_that_is_gone_finishes_what_was_noted_of_prompts",
    ),
    Mutation(
        "what a cancelled task was to do is never ended",
        _TASKS,
        "spawn",
        "task.add_done_callback(lambda _: coro.close())",
        "pass",
        "tests/core/test_tasks.py::test_a_task_that_is_cancelled_before_it_begins_leaves_no_coroutine",
    ),
)
