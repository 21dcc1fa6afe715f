"""Connections to endpoints, and the timers of those."""

from tests.mutations.model import Mutation

_FAILOVER = "addons/failover_stream.py"
_LEAKS = "addons/failover_leaks.py"
_PARENT = "addons/failover_connections.py"
_TIMERS = "addons/failover_timers.py"

_FAIL = "tests/addon/test_failover.py::"
_TIMES = "tests/addon/test_timers.py::"

MUTATIONS = (
    # Connections to endpoints.
    Mutation(
        "a connection that failed stays",
        _FAILOVER,
        "FailoverStream._failed",
        "yield from self._parent.abandon(self.context.server)",
        "pass",
        _FAIL + "test_a_failed_endpoint_is_replaced[short-200 and a bad chunk before an event]",
    ),
    Mutation(
        "a connection whose response is dropped stays",
        _FAILOVER,
        "FailoverStream._judge",
        "yield from self._parent.abandon(self.context.server)",
        "pass",
        _FAIL + "test_an_abandoned_connection_is_closed_while_the_client_stays",
    ),
    Mutation(
        "a connection stays when the client has left while we asked",
        _FAILOVER,
        "FailoverStream._stopped",
        "yield from self._parent.abandon(server)",
        "pass",
        _FAIL + "test_an_http2_stream_reset_while_it_is_held_closes_its_connection",
    ),
    Mutation(
        "a flow that was killed while we asked stays",
        _FAILOVER,
        "FailoverStream._stopped",
        "yield DropStream(self.stream_id)",
        "pass",
        _FAIL + "test_a_flow_killed_while_the_addon_is_asked_is_forgotten_though_its_client_stays",
    ),
    Mutation(
        "a flow that we answered stays",
        _FAILOVER,
        "FailoverStream._fail",
        "yield DropStream(self.stream_id)",
        "pass",
        _FAIL + "test_after_an_error_of_ours_the_client_s_connection_lives_and_the_endpoint_may_return",
    ),
    Mutation(
        "the end of a flow that we answered is not told",
        _FAILOVER,
        "FailoverStream._fail",
        "yield HttpErrorHook(self.flow)",
        "pass",
        _FAIL + "test_the_answer_to_head_has_no_body",
    ),
    Mutation(
        "an abandoned connection is not closed",
        _PARENT,
        "EndpointConnections.abandon",
        "yield commands.CloseConnection(connection)",
        "pass",
        _FAIL + "test_an_abandoned_connection_is_closed_while_the_client_stays",
    ),
    Mutation(
        "closed connections are kept",
        _PARENT,
        "EndpointConnections.forget_closed",
        "del self.connections[connection]",
        "pass",
        _FAIL + "test_closed_connections_are_forgotten",
    ),
    Mutation(
        "an endpoint that refused is never connected to again",
        _PARENT,
        "EndpointConnections.forget_failures",
        "connection.error = None",
        "pass",
        _FAIL + "test_after_an_error_of_ours_the_client_s_connection_lives_and_the_endpoint_may_return",
    ),
    Mutation(
        "a socket that mitmproxy forgot stays open",
        _LEAKS,
        "server_disconnected",
        "io.writer.close()",
        "pass",
        _FAIL + "test_a_connection_whose_task_ends_without_a_word_is_closed",
    ),
    Mutation(
        "a socket that was connected as its client left stays open",
        _LEAKS,
        "_close_all",
        "io.writer.close()",
        "pass",
        _TIMES + "test_a_socket_that_was_connected_as_its_client_left_is_closed",
    ),
    # Their timers.
    Mutation(
        "the time-out of connecting runs on when it stands",
        _TIMERS,
        "ConnectTimeouts.server_connected",
        "self._stop(data.server)",
        "pass",
        _TIMES + "test_no_timer_is_left_of_a_connection",
    ),
    Mutation(
        "the time-out of connecting runs on when it failed",
        _TIMERS,
        "ConnectTimeouts.server_connect_error",
        "self._stop(data.server)",
        "pass",
        _TIMES + "test_no_timer_is_left_of_a_connection",
    ),
    Mutation(
        "the time-out of TLS runs on when the connection is closed",
        _TIMERS,
        "ConnectTimeouts.server_disconnected",
        "self._stop(data.server)",
        "pass",
        _TIMES + "test_no_timer_is_left_of_a_connection",
    ),
    Mutation(
        "the time-out of connecting stays when it has fired",
        _TIMERS,
        "ConnectTimeouts._connecting",
        "self._stop(data.server)",
        "pass",
        _TIMES + "test_a_timer_that_has_fired_is_forgotten",
    ),
    Mutation(
        "the time-out of TLS stays when it has fired",
        _TIMERS,
        "ConnectTimeouts._shaking_hands",
        "self._stop(data.server)",
        "pass",
        _TIMES + "test_a_timer_that_has_fired_is_forgotten",
    ),
    Mutation(
        "a stopped time-out fires",
        _TIMERS,
        "ConnectTimeouts._stop",
        "timer.cancel()",
        "pass",
        _TIMES + "test_no_timer_is_left_of_a_connection",
    ),
    Mutation(
        "a black hole is waited for",
        _TIMERS,
        "ConnectTimeouts._connecting",
        "io.handler.cancel(CONNECT_TIMEOUT)",
        "pass",
        _FAIL + "test_a_black_hole_costs_the_connect_time_out",
    ),
    Mutation(
        "a TLS handshake that hangs is waited for",
        _TIMERS,
        "ConnectTimeouts._shaking_hands",
        "_abort(io)",
        "pass",
        _FAIL + "test_a_tls_handshake_that_hangs_goes_to_the_next",
    ),
    Mutation(
        "the time-out of the first byte cannot be stopped",
        _TIMERS,
        "FirstByteTimeout.stop",
        "self._timer.cancel()",
        "pass",
        _TIMES + "test_a_stopped_time_out_does_nothing",
    ),
    Mutation(
        "the time-out of a silent stream cannot be stopped",
        _TIMERS,
        "IdleTimeout.stop",
        "self._timer.cancel()",
        "pass",
        _TIMES + "test_a_stopped_time_out_does_nothing",
    ),
    Mutation(
        "a time-out closes nothing",
        _TIMERS,
        "_abort",
        "io.writer.transport.abort()",
        "pass",
        _FAIL + "test_a_first_byte_that_does_not_come_in_time_is_a_504_and_not_tried_again",
    ),
)
