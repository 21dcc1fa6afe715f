"""Connections to Redis, and what leaves a server alone that is away or slow."""

from tests.mutations.model import Mutation

_BREAKER = "lb_core/stores/breaker.py"
_LINK = "lb_core/stores/link.py"
_SERVER = "lb_core/stores/server.py"
_WIRE = "lb_core/stores/wire.py"

_LINKS = "tests/redis/test_link_ends.py::"
_PAUSES = "tests/redis/test_breaker.py::"
_TELLING = "tests/redis/test_telling.py::"

MUTATIONS = (
    # Connections.
    Mutation(
        "who is asked for the master and is silent is asked first for ever",
        _LINK,
        "Link._keep",
        "self._failures += 1",
        "pass",
        "tests/redis/test_link.py::"
        "test_one_that_accepts_and_is_silent_does_not_keep_the_others_from_being_asked[sentinel]",
    ),
    Mutation(
        "a closed link goes on connecting",
        _LINK,
        "Link.close",
        "self._task.cancel()",
        "pass",
        _LINKS + "test_a_closed_link_is_closed",
    ),
    Mutation(
        "a closed link leaves its connection",
        _LINK,
        "Link.close",
        "self._wire.abort()",
        "pass",
        _LINKS + "test_a_closed_link_is_closed",
    ),
    Mutation(
        "the links of a balancer that ends stay",
        _LINK,
        "Links.close",
        "await self.keep(())",
        "pass",
        _LINKS + "test_all_links_are_closed",
    ),
    Mutation(
        "a link that nobody uses stays connected",
        _LINK,
        "Links.keep",
        "await link.close()",
        "pass",
        _LINKS + "test_all_links_are_closed",
    ),
    Mutation(
        "a link that nobody uses is remembered",
        _LINK,
        "Links.keep",
        "del self._links[place]",
        "pass",
        "tests/core/test_reload.py::test_a_link_to_a_redis_that_is_not_used_any_more_is_closed",
    ),
    Mutation(
        "a watcher that left is called",
        _LINK,
        "Link.unwatch",
        "self._watchers.remove(watcher)",
        "pass",
        _TELLING + "test_a_closed_store_hears_no_more_of_its_link",
    ),
    Mutation(
        "a connection that a replica refused stays",
        _LINK,
        "Link._connect",
        "wire.abort()",
        "pass",
        _LINKS + "test_a_connection_that_is_of_no_use_is_closed",
    ),
    Mutation(
        "a connection to a master that moved is kept",
        _LINK,
        "Link._in_trouble",
        "self._wire.abort()",
        "pass",
        _LINKS + "test_a_connection_to_what_became_a_replica_is_dropped",
    ),
    Mutation(
        "a connection on which nothing comes is kept",
        _LINK,
        "Link._keep",
        "self._wire.abort()",
        "pass",
        _LINKS + "test_a_connection_on_which_nothing_comes_is_dropped",
    ),
    Mutation(
        "a connection to a sentinel or for a question stays",
        _SERVER,
        "Server._ask",
        "wire.abort()",
        "pass",
        _LINKS + "test_who_is_asked_for_the_master_is_left_again",
    ),
    Mutation(
        "an aborted wire stays open",
        _WIRE,
        "Wire.abort",
        "self._transport.abort()",
        "pass",
        _LINKS + "test_a_closed_link_is_closed",
    ),
    Mutation(
        "a late reply to a caller that left breaks the connection",
        _WIRE,
        "Wire.data_received",
        "if future.done():",
        "if False:",
        "tests/redis/test_defects.py::test_h3_a_client_that_leaves_during_the_call_leaves_nothing",
    ),
    Mutation(
        "what is no Redis server is listened to",
        _WIRE,
        "Wire.data_received",
        "self.abort()",
        "pass",
        _LINKS + "test_what_answers_unasked_is_left",
    ),
    Mutation(
        "calls on a lost connection wait",
        _WIRE,
        "Wire.connection_lost",
        'future.set_exception(ServerAway("the connection was lost"))',
        "pass",
        _LINKS + "test_calls_end_with_their_connection",
    ),
    # The breaker.
    Mutation(
        "failures in a row do not open the breaker",
        _BREAKER,
        "Breaker.failed",
        "return self._failures >= _FAILURES",
        "return False",
        _PAUSES + "test_it_opens_after_two_failures_in_a_row",
    ),
    Mutation(
        "an answer does not end the row",
        _BREAKER,
        "Breaker.answered",
        "self._failures = 0",
        "pass",
        _PAUSES + "test_it_opens_after_two_failures_in_a_row",
    ),
    Mutation(
        "slow answers do not open the breaker",
        _BREAKER,
        "Breaker.answered",
        "return len(self._slow) == _SLOW_CALLS and now - self._slow[0] <= _WINDOW_S",
        "return False",
        _PAUSES + "test_it_opens_after_three_slow_calls_within_a_second",
    ),
    Mutation(
        "a failure is not slow",
        _BREAKER,
        "Breaker.failed",
        "self._slow.append(self._clock())",
        "pass",
        _PAUSES + "test_a_failure_is_slow_too",
    ),
    Mutation(
        "what was before the pause counts after it",
        _BREAKER,
        "Breaker.closed",
        "self._failures = 0",
        "pass",
        _PAUSES + "test_what_was_before_the_pause_does_not_count_after_it",
    ),
    Mutation(
        "slow answers of before the pause count after it",
        _BREAKER,
        "Breaker.closed",
        "self._slow.clear()",
        "pass",
        _PAUSES + "test_what_was_before_the_pause_does_not_count_after_it",
    ),
    Mutation(
        "the pause stays long for ever",
        _BREAKER,
        "Breaker.pause_s",
        "self._pause_s = _FIRST_PAUSE_S",
        "pass",
        _PAUSES + "test_the_pause_starts_anew_when_the_server_was_good_for_a_while",
    ),
    Mutation(
        "the pause does not double",
        _BREAKER,
        "Breaker.pause_s",
        "self._pause_s = min(pause * 2, _LONGEST_PAUSE_S)",
        "pass",
        _PAUSES + "test_the_pause_doubles_for_a_slow_server_only",
    ),
    Mutation(
        "a server that does not answer is asked for ever",
        _LINK,
        "Link.call",
        'self._in_trouble("it does not answer in time")',
        "pass",
        _LINKS + "test_a_connection_on_which_nothing_comes_is_dropped",
    ),
    Mutation(
        "a slow server is asked for ever",
        _LINK,
        "Link.call",
        'self._in_trouble("it is slow")',
        "pass",
        _LINKS + "test_a_slow_server_is_left_alone",
    ),
)
