"""Who is told to come back when, and how long a request waits for Redis."""

from tests.mutations.model import Mutation

_BALANCER = "lb_core/balancer.py"
_EXCHANGE = "addons/exchange.py"
_HOOKS = "addons/failover/hooks.py"
_MONITOR = "lb_core/health/monitor.py"
_PATIENCE = "lb_core/stores/patience.py"
_RECENT = "lb_core/recent.py"
_STREAM = "addons/failover/stream.py"
_TASKS = "lb_core/tasks.py"

_PATIENCE_TESTS = "tests/redis/test_patience.py::"
_PROGRESS = "tests/addon/test_progress.py::"
_RECENT_TESTS = "tests/core/test_recent.py::"
_TOLD = "tests/core/test_balancer_news.py::"

MUTATIONS = (
    # When to come back.
    Mutation(
        "a place that came free is not counted",
        _RECENT,
        "Pace.finished",
        "self._finished.add()",
        "pass",
        _RECENT_TESTS + "test_the_wait_is_the_queue_by_the_rate_at_which_it_moves",
    ),
    Mutation(
        "a request without a place is not counted",
        _RECENT,
        "Pace.refused",
        "self._refused.add()",
        "pass",
        _RECENT_TESTS + "test_the_wait_is_the_queue_by_the_rate_at_which_it_moves",
    ),
    Mutation(
        "who is told to come back may have to wait for ever",
        _RECENT,
        "Pace.wait_s",
        ", LONGEST_WAIT_S)",
        ", 10**9)",
        _RECENT_TESTS + "test_the_wait_is_the_queue_by_the_rate_at_which_it_moves",
    ),
    Mutation(
        "the end does not tell how fast it goes",
        _BALANCER,
        "Balancer.finish",
        "home.cluster.pace.finished()",
        "pass",
        _TOLD + "test_who_finds_no_place_is_told_when_there_should_be_one",
    ),
    Mutation(
        "it is not counted who finds no place",
        _BALANCER,
        "Balancer.route",
        "cluster.pace.refused()",
        "pass",
        _TOLD + "test_who_finds_no_place_is_told_when_there_should_be_one",
    ),
    Mutation(
        "who finds no place is told to come back at once",
        _BALANCER,
        "Balancer.route",
        "error.retry_after_s = min(cluster.pace.wait_s() for cluster in full)",
        "pass",
        _TOLD + "test_who_finds_no_place_is_told_when_there_should_be_one",
    ),
    Mutation(
        "of several clusters the slowest tells when to come back",
        _BALANCER,
        "Balancer.route",
        "min(cluster.pace",
        "max(cluster.pace",
        _TOLD + "test_of_several_clusters_the_fastest_tells_when_to_come_back",
    ),
    Mutation(
        "a client waits for its endpoint though another has room",
        _BALANCER,
        "Balancer.retry_after_s",
        "min(rest_s, others_s)",
        "rest_s",
        _TOLD + "test_a_client_waits_for_the_first_endpoint_that_has_room",
    ),
    Mutation(
        "a client does not wait for its endpoint",
        _BALANCER,
        "Balancer.retry_after_s",
        "rest_seconds(said, unix_time=time.time())",
        "0.0",
        _TOLD + "test_a_client_waits_for_the_first_endpoint_that_has_room",
    ),
    Mutation(
        "the rest of its own endpoint counts as that of another",
        _MONITOR,
        "Health.rest_s",
        "member.name != besides and ",
        "",
        _TOLD + "test_a_client_waits_for_the_first_endpoint_that_has_room",
    ),
    Mutation(
        "an endpoint counts as one with room for a model that it lacks",
        _MONITOR,
        "Health.rest_s",
        " and (among is None or member.name in among)",
        "",
        _TOLD + "test_a_client_does_not_wait_for_an_endpoint_that_lacks_its_model",
    ),
    Mutation(
        "an endpoint that is out counts as one with room",
        _MONITOR,
        "Health.rest_s",
        " and member.sound",
        "",
        "tests/core/test_health.py::test_who_is_out_or_drained_does_not_shorten_the_wait",
    ),
    Mutation(
        "an endpoint that drains counts as one with room",
        _MONITOR,
        "Health.rest_s",
        "member.present and ",
        "",
        "tests/core/test_health.py::test_who_is_out_or_drained_does_not_shorten_the_wait",
    ),
    Mutation(
        "the client of a busy endpoint is told what the endpoint says",
        _EXCHANGE,
        "Exchange.response_started",
        'headers["retry-after"] = str(self.retry_after_s())',
        "pass",
        _PROGRESS + "test_a_client_is_told_to_come_back_when_the_first_endpoint_has_room",
    ),
    Mutation(
        "the answer to a question about a failure has no time in it",
        _HOOKS,
        "FailoverHooks.ai_lb_retry",
        "question.retry_after_s = exchange.retry_after_s()",
        "pass",
        _PROGRESS + "test_a_client_is_told_to_come_back_when_the_first_endpoint_has_room",
    ),
    Mutation(
        "an answer of ours does not say when to come back",
        _STREAM,
        "FailoverStream._fail",
        "error.retry_after_s = question.retry_after_s",
        "pass",
        _PROGRESS + "test_a_client_is_told_to_come_back_when_the_first_endpoint_has_room",
    ),
    # The time that a request waits for Redis.
    Mutation(
        "each call for a request has the full time",
        _BALANCER,
        "Balancer.route",
        "with OneWait():",
        "if True:",
        _PATIENCE_TESTS + "test_a_request_waits_once_for_a_frozen_server",
    ),
    Mutation(
        "each call of a retry has the full time",
        _BALANCER,
        "Balancer.retry",
        "with OneWait():",
        "if True:",
        _TOLD + "test_a_retry_has_one_wait_for_all_its_calls",
    ),
    Mutation(
        "what a request has waited is not counted",
        _PATIENCE,
        "at_most",
        "waited.seconds += now() - begun",
        "pass",
        _PATIENCE_TESTS + "test_a_request_waits_once_for_a_frozen_server",
    ),
    Mutation(
        "who has waited long enough waits on",
        _PATIENCE,
        "at_most",
        "if waited.seconds >= limit_s:",
        "if False:",
        _PATIENCE_TESTS + "test_what_a_request_begins_in_the_background_has_its_own_time",
    ),
    Mutation(
        "who has waited a little may wait in full",
        _PATIENCE,
        "at_most",
        "limit_s - waited.seconds",
        "limit_s",
        _PATIENCE_TESTS + "test_slow_answers_take_no_longer_together",
    ),
    Mutation(
        "what is awaited after a request counts as its own",
        _PATIENCE,
        "OneWait.__exit__",
        "_waited.reset(self._token)",
        "pass",
        _PATIENCE_TESTS + "test_what_a_request_begins_in_the_background_has_its_own_time",
    ),
    Mutation(
        "what is begun in the background has the time of its request",
        _TASKS,
        "spawn",
        ", context=Context()",
        "",
        _PATIENCE_TESTS + "test_what_a_request_begins_in_the_background_has_its_own_time",
    ),
)
