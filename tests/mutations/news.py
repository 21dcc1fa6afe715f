"""What balancers tell each other of endpoints."""

from tests.mutations.model import Mutation

_FLEET = "lb_core/stores/fleet.py"
_LUA = "lb_core/stores/lua/"
_MONITOR = "lb_core/health/monitor.py"
_OUTLIER = "lb_core/health/outlier.py"
_REPORTS = "lb_core/health/reports.py"
_RUNTIME = "lb_core/runtime.py"

_FLEET_TESTS = "tests/redis/test_health_fleet.py::"
_HEALTH = "tests/core/test_health.py::"
_PARTS = "tests/core/test_runtime_parts.py::"

MUTATIONS = (
    # What is told.
    Mutation(
        "an ejection is not told",
        _MONITOR,
        "Health._eject",
        "self.fleet.ejected(member.name, member.outlier.until - now, reason)",
        "pass",
        _HEALTH + "test_what_was_found_here_is_told_and_what_was_heard_is_not_told_again",
    ),
    Mutation(
        "a return is not told",
        _MONITOR,
        "Health.succeeded",
        "self.fleet.recovered(member.name)",
        "pass",
        _HEALTH + "test_what_was_found_here_is_told_and_what_was_heard_is_not_told_again",
    ),
    Mutation(
        "an ejection does not reach the server",
        _FLEET,
        "RedisFleet.ejected",
        '"out", int(for_s * 1000), reason',
        '"in", 0, reason',
        _FLEET_TESTS + "test_an_ejection_and_the_return_are_heard_by_the_other_balancers",
    ),
    Mutation(
        "a return does not reach the server",
        _FLEET,
        "RedisFleet.recovered",
        'self._say(TELL, key(self._cluster, "news"), endpoint, self._owner, "in", 0, "recovered")',
        "pass",
        _FLEET_TESTS + "test_an_ejection_and_the_return_are_heard_by_the_other_balancers",
    ),
    Mutation(
        "the script keeps no news",
        _LUA + "tell.lua",
        "",
        "redis.call('HSET', KEYS[1], ARGV[1], text)",
        "",
        _FLEET_TESTS + "test_who_comes_later_hears_what_is_out_and_for_how_long",
    ),
    Mutation(
        "news never go away by themselves",
        _LUA + "tell.lua",
        "",
        "redis.call('EXPIRE', KEYS[1], 3600)",
        "",
        _FLEET_TESTS + "test_news_go_away_when_nobody_tells_any",
    ),
    Mutation(
        "an ejection that is told has no end",
        _LUA + "tell.lua",
        "",
        "now + ARGV[4]",
        "now",
        _FLEET_TESTS + "test_who_comes_later_hears_what_is_out_and_for_how_long",
    ),
    Mutation(
        "the script gives no news",
        _LUA + "news.lua",
        "",
        "redis.call('HGETALL', KEYS[1])",
        "{}",
        _FLEET_TESTS + "test_who_comes_later_hears_what_is_out_and_for_how_long",
    ),
    # What is heard.
    Mutation(
        "nobody listens",
        _MONITOR,
        "Health.listen",
        "await self.fleet.listen(self.heard)",
        "pass",
        _FLEET_TESTS + "test_an_ejection_and_the_return_are_heard_by_the_other_balancers",
    ),
    Mutation(
        "the runtime listens to nobody",
        _RUNTIME,
        "Runtime._start_parts",
        'spawn(cluster.health.listen(), name="news of health") for cluster in self.clusters.values()',
        "",
        _PARTS + "test_nothing_runs_after_the_end",
    ),
    Mutation(
        "news are not handed over",
        _FLEET,
        "RedisFleet.listen",
        "heard(self._fresh(reply))",
        "pass",
        _FLEET_TESTS + "test_who_comes_later_hears_what_is_out_and_for_how_long",
    ),
    Mutation(
        "who listens ends with the server",
        _FLEET,
        "RedisFleet.listen",
        "except (ServerAway, Refused):",
        "except Refused:",
        _FLEET_TESTS + "test_while_the_server_is_away_everybody_judges_alone",
    ),
    Mutation(
        "news are heard again and again",
        _FLEET,
        "RedisFleet._fresh",
        "known.get(endpoint) != text and ",
        "",
        _FLEET_TESTS + "test_each_item_is_heard_once_and_ones_own_never",
    ),
    Mutation(
        "a balancer hears itself",
        _FLEET,
        "RedisFleet._read",
        ' or found["owner"] == self._owner',
        "",
        _FLEET_TESTS + "test_each_item_is_heard_once_and_ones_own_never",
    ),
    Mutation(
        "what a balancer told that is long gone is heard",
        _FLEET,
        "RedisFleet._read",
        "if left_s < -_OLD_S:",
        "if False:",
        _FLEET_TESTS + "test_what_no_balancer_wrote_and_what_is_long_over_is_passed_over",
    ),
    Mutation(
        "a claim that cannot be asked for is not had",
        _FLEET,
        "RedisFleet.claim",
        "return True",
        "return False",
        _FLEET_TESTS + "test_without_the_server_everybody_probes",
    ),
    Mutation(
        "a claim that is held is had by all",
        _FLEET,
        "RedisFleet.claim",
        "return reply is not None",
        "return True",
        _FLEET_TESTS + "test_of_five_balancers_with_a_half_open_endpoint_one_probes",
    ),
    # What follows from it.
    Mutation(
        "what another balancer ejected is not out",
        _REPORTS,
        "Reports.heard",
        "outlier.hear_ejected(now, item.reason, item.left_s)",
        "pass",
        _HEALTH + "test_what_another_balancer_ejected_is_out_here_too_and_half_open_afterwards",
    ),
    Mutation(
        "what another balancer found in health is not back",
        _REPORTS,
        "Reports.heard",
        " and outlier.hear_recovered(now, then)",
        "",
        _HEALTH + "test_what_recovered_elsewhere_is_back_and_starts_slowly",
    ),
    Mutation(
        "what another balancer found in health gets its full share at once",
        _REPORTS,
        "Reports.heard",
        "member.ramp_from = now",
        "pass",
        _HEALTH + "test_what_recovered_elsewhere_is_back_and_starts_slowly",
    ),
    Mutation(
        "old news of an ejection count",
        _REPORTS,
        "Reports.heard",
        " and outlier.succeeded_at < then",
        "",
        _HEALTH + "test_news_older_than_what_was_seen_here_is_ignored",
    ),
    Mutation(
        "news eject any number",
        _REPORTS,
        "Reports.heard",
        " and self._may_eject(member, item.reason)",
        "",
        _HEALTH + "test_what_is_heard_ejects_no_more_than_what_is_seen",
    ),
    Mutation(
        "news of an ejection are not taken in",
        _OUTLIER,
        "Outlier.hear_ejected",
        "self._out(now, reason, left_s)",
        "pass",
        _HEALTH + "test_what_another_balancer_ejected_is_out_here_too_and_half_open_afterwards",
    ),
    Mutation(
        "an ejection that is heard has its full time again",
        _OUTLIER,
        "Outlier.hear_ejected",
        "self._out(now, reason, left_s)",
        "self._out(now, reason, self._config.ejection_s)",
        _HEALTH + "test_what_another_balancer_ejected_is_out_here_too_and_half_open_afterwards",
    ),
    Mutation(
        "that another balancer cannot connect is no matter",
        _OUTLIER,
        "Outlier._out",
        'self.unreachable = reason == "unreachable"',
        "pass",
        _HEALTH + "test_what_another_balancer_cannot_connect_to_is_avoided_in_a_panic",
    ),
    Mutation(
        "news of a return are not taken in",
        _OUTLIER,
        "Outlier.hear_recovered",
        "self._enter(Phase.HEALTHY, now)",
        "pass",
        _HEALTH + "test_what_recovered_elsewhere_is_back_and_starts_slowly",
    ),
    Mutation(
        "old news of a return count",
        _OUTLIER,
        "Outlier.hear_recovered",
        " or self._ejected_at > then",
        "",
        _HEALTH + "test_news_older_than_what_was_seen_here_is_ignored",
    ),
    Mutation(
        "what others connect to counts as unreachable",
        _OUTLIER,
        "Outlier.hear_recovered",
        "self.unreachable = False",
        "pass",
        _HEALTH + "test_what_others_connect_to_again_is_no_more_unreachable_here",
    ),
)
