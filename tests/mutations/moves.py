"""A slot that is to move to a full endpoint, and requests counted while their place is asked for."""

from tests.mutations.model import Mutation

_BALANCER = "lb_core/balancer.py"
_LUA = "lb_core/stores/lua/hold.lua"
_MEMORY = "lb_core/stores/memory.py"
_REDIS = "lb_core/stores/redis.py"
_RESERVATION = "lb_core/engines/reservation.py"

_BACK = "tests/core/test_giving_back.py::"
_BURSTS = "tests/redis/test_bursts.py::"
_CONTRACT = "tests/core/test_store_contract.py::"
_TOLD = "tests/core/test_balancer_news.py::"

MUTATIONS = (
    # A move that is refused.
    Mutation(
        "a slot moves to a full endpoint in memory",
        _MEMORY,
        "MemoryStore.move",
        "raise Saturated(FULL)",
        "pass",
        _CONTRACT + "test_a_slot_does_not_move_to_a_full_endpoint[memory]",
    ),
    Mutation(
        "a slot moves to a full endpoint in Redis",
        _LUA,
        "",
        "return {-1, fresh}",
        "",
        _CONTRACT + "test_a_slot_does_not_move_to_a_full_endpoint[redis]",
    ),
    Mutation(
        "a slot that is at a full endpoint may not stay",
        _LUA,
        "",
        "and redis.call('HGET', KEYS[2], ARGV[4]) ~= ARGV[5] ",
        "",
        _CONTRACT + "test_a_slot_does_not_move_to_a_full_endpoint[redis]",
    ),
    Mutation(
        "a refused move is taken for one that was made",
        _REDIS,
        "RedisStore.move",
        "raise Saturated(FULL)",
        "pass",
        _CONTRACT + "test_a_slot_does_not_move_to_a_full_endpoint[redis]",
    ),
    Mutation(
        "a refused move is made in the books",
        _REDIS,
        "RedisStore.move",
        "self._books.move(lease_id, before.lease.endpoint)",
        "pass",
        _CONTRACT + "test_a_slot_does_not_move_to_a_full_endpoint[redis]",
    ),
    Mutation(
        "what ended before a move makes no room for it",
        _REDIS,
        "RedisStore.move",
        "self._flush()",
        "pass",
        _CONTRACT + "test_a_slot_does_not_move_to_a_full_endpoint[redis]",
    ),
    Mutation(
        "a server that has forgotten us is not told what we hold after a move",
        _REDIS,
        "RedisStore.move",
        "self._upkeep.unknown()",
        "pass",
        "tests/redis/test_telling.py::test_a_server_that_has_forgotten_us_is_told_at_the_next_move",
    ),
    Mutation(
        "a move without an answer is taken for one that was not made",
        _REDIS,
        "RedisStore.move",
        "self._upkeep.suspect()",
        "pass",
        "tests/redis/test_telling.py::test_a_move_without_an_answer_is_told_again",
    ),
    Mutation(
        "a move that the server refused is forgotten",
        _REDIS,
        "RedisStore.move",
        'self._upkeep.refused("move", error)',
        "pass",
        "tests/redis/test_upkeep.py::test_after_a_refused_move_counts_are_shared_again_without_another_move",
    ),
    Mutation(
        "a refused move keeps its probe",
        _BALANCER,
        "Balancer._move",
        "attempt.ended(IGNORED)\n                continue",
        "continue",
        _TOLD + "test_an_endpoint_that_others_have_filled_is_passed_over_and_its_attempt_is_over",
    ),
    Mutation(
        "a refused move ends the failover",
        _BALANCER,
        "Balancer._move",
        "attempt.ended(IGNORED)\n                continue",
        "attempt.ended(IGNORED)\n                return None",
        _TOLD + "test_an_endpoint_that_others_have_filled_is_passed_over_and_its_attempt_is_over",
    ),
    Mutation(
        "a retry asks an endpoint that rests",
        _BALANCER,
        "Balancer.retry",
        "if 0 < rest_s < math.inf:",
        "if False:",
        _BACK + "test_what_an_endpoint_answers_is_not_tried_again_where_all_others_rest",
    ),
    Mutation(
        "a request waits for none of the endpoints that joined",
        _BALANCER,
        "Balancer._move",
        "decision = joined(decision, home.endpoints, snapshot)",
        "pass",
        "tests/core/test_reload.py::test_a_retry_after_all_endpoints_were_replaced_goes_to_a_new_one",
    ),
    Mutation(
        "no board counts a request where it was moved to",
        _BALANCER,
        "Balancer._move",
        "cluster.board.placed(endpoint.name, placement.lease.id)",
        "pass",
        _TOLD + "test_a_retry_counts_on_the_board_of_its_new_endpoint",
    ),
    # A request counted while its place is asked for.
    Mutation(
        "what was counted of a refused request stays",
        _RESERVATION,
        "Reservation.__exit__",
        "self.move(None)",
        "pass",
        _BURSTS + "test_nothing_is_counted_of_a_request_that_is_refused_or_leaves",
    ),
    Mutation(
        "what was counted elsewhere stays on the board",
        _RESERVATION,
        "Reservation.move",
        "self._board.finished(before, self._lease_id)",
        "pass",
        _BURSTS + "test_what_the_store_places_elsewhere_is_counted_there",
    ),
    Mutation(
        "what was counted elsewhere stays among the choices",
        _RESERVATION,
        "Reservation.move",
        "self._recent.withdraw(before)",
        "pass",
        _BURSTS + "test_what_the_store_places_elsewhere_is_counted_there",
    ),
    Mutation(
        "a request is not on the board",
        _RESERVATION,
        "Reservation.move",
        "self._board.placed(endpoint, self._lease_id)",
        "pass",
        _BACK + "test_the_end_tells_the_board_that_the_request_is_gone",
    ),
    Mutation(
        "a request is not among the choices",
        _RESERVATION,
        "Reservation.move",
        "self._recent.note(endpoint)",
        "pass",
        _BURSTS + "test_the_rate_limit_holds_in_a_burst_over_redis",
    ),
    Mutation(
        "a request is not counted while it is placed",
        _BALANCER,
        "Balancer._place",
        "reservation.move(likely[1].endpoint.name)",
        "pass",
        _BURSTS + "test_nothing_is_counted_of_a_request_that_is_refused_or_leaves",
    ),
    Mutation(
        "a request is not counted where it was placed",
        _BALANCER,
        "Balancer._place",
        "reservation.move(lease.endpoint.name)",
        "pass",
        _BURSTS + "test_what_the_store_places_elsewhere_is_counted_there",
    ),
    Mutation(
        "choices that are taken back keep their share",
        "lb_core/engines/shares.py",
        "RecentChoices.withdraw",
        "self._forget(endpoint)",
        "pass",
        _BURSTS + "test_what_the_store_places_elsewhere_is_counted_there",
    ),
    Mutation(
        "the oldest choice keeps its share",
        "lb_core/engines/shares.py",
        "RecentChoices.note",
        "self._forget(self._order.popleft())",
        "pass",
        "tests/core/test_engines_board.py::test_recent_choices_count_the_last_hundred",
    ),
)
