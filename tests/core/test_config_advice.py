"""What a configuration's author is told about the policies, keys and clusters that there are."""

import pytest

from lb_core.config import loads, warnings
from lb_core.errors import ConfigError

CLUSTERS = "clusters: {a: {endpoints: ['http://127.0.0.1:1']}, b: {endpoints: ['http://127.0.0.1:2']}}\n"
ONE = "clusters: {a: {endpoints: ['http://127.0.0.1:1']}}\n"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "lb.yaml", {})
    return [line.removeprefix("lb.yaml:") for line in caught.value.lines()]


@pytest.mark.parametrize("metric_policy", ["", "metric_policy: default, "])
def test_a_target_metric_that_nothing_would_read_is_told(metric_policy: str) -> None:
    text = f"{ONE}lb_policy: endpoint_metrics\nlb_config: {{{metric_policy}target_metric: x}}\n"
    assert problems(text) == [
        "3: lb_config: target_metric is read with metric_policy 'least' or 'most' only; set one of them"
    ]


@pytest.mark.parametrize(
    "policy",
    [
        "lb_type: endpoint\nlb_policy: endpoint_metrics\nlb_config: {rate_limit: 0}\n",
        "lb_type: cluster\nlb_policy: cluster_metrics\n"
        "lb_config: {mode: LeastBusy, service_list: [a, b], rate_limit: 0}\n",
    ],
)
def test_a_rate_limit_that_every_endpoint_is_over_is_told(policy: str) -> None:
    routes = "" if "cluster_" in policy else "routes: [{cluster: a}]"
    assert problems(f"{CLUSTERS}{policy}{routes}") == [
        "4: lb_config.rate_limit: 0 is not more than 0 and at most 1"
    ]


SERVICES = "lb_policy: cluster_metrics\nlb_config: {mode: LeastBusy, service_list: [a, b]}\n"


@pytest.mark.parametrize("text", ["routes: [{cluster: a}]\n", SERVICES])
def test_a_cluster_that_serves_and_has_nothing_to_serve_with_is_warned_of(text: str) -> None:
    def lines(a: str, b: str = "['http://127.0.0.1:2']") -> tuple[str, ...]:
        return warnings(loads(f"clusters: {{a: {a}, b: {{endpoints: {b}}}}}\n{text}"))

    told = "cluster 'a' has no endpoint and no endpoints_file: its requests get 503"
    assert lines("{endpoints: []}") == (told,)
    assert not lines("{endpoints: ['http://127.0.0.1:1']}")
    assert not lines("{endpoints: ['dns+http://h']}")
    assert not lines("{endpoints: [], endpoints_file: x.yaml}")
    assert bool(lines("{endpoints: ['http://127.0.0.1:1']}", "[]")) == (text == SERVICES), "b is not used"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "lb_policy: global_least_request\nlb_config: {redisKeyTTL: 5}",
            "3: lb_config.redisKeyTTL: belongs to the policy prefix_cache",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {max_request_count: 5}",
            "3: lb_config.max_request_count: belongs to the policy global_least_request",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {rate_limit: 0.5}",
            "3: lb_config.rate_limit: belongs to the policies endpoint_metrics, cluster_metrics",
        ),
        ("balance: random", "2: balance: belongs under clusters.NAME"),
        ("health: {}", "2: health: belongs under clusters.NAME"),
        ("endpoints: []", "2: endpoints: belongs under clusters.NAME"),
        ("routes: [{cluster: a, metrics: false}]", "2: routes[0].metrics: belongs under clusters.NAME"),
        ("match: {}", "2: match: belongs under routes"),
    ],
)
def test_of_a_key_that_stands_elsewhere_the_place_is_told(text: str, expected: str) -> None:
    assert problems(f"{ONE}{text}\n") == [expected]


@pytest.mark.parametrize("key", ["retry", "timeouts", "lb_policy"])
def test_of_a_routes_key_in_a_cluster_the_place_is_told(key: str) -> None:
    assert problems(f"clusters: {{a: {{endpoints: [], {key}: x}}}}") == [
        f"1: clusters.a.{key}: belongs to the top level or a route"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{ONE}lb_polcy: global_least_request\nlb_config: {{maxRequestCout: 5}}",
            ["2: lb_polcy: unknown key", "3: lb_config.maxRequestCout: unknown key"],
        ),
        (f"{ONE}lb_polcy: prefix_cach", ["2: lb_polcy: unknown key", "2: lb_policy: unknown policy"]),
        (
            f"{ONE}lb_policy: prefix_cach\nlb_config: {{redisKeyTTL: 5, redisKyTTL: 5}}",
            ["2: lb_policy: unknown policy", "3: lb_config.redisKyTTL: unknown key"],
        ),
        (
            f"{ONE}lb_policy: prefix_cache\nlb_confg: {{redisKyTTL: 5}}",
            ["3: lb_confg: unknown key", "3: lb_config.redisKyTTL: unknown key"],
        ),
        (
            "clustrs:\n  a: {endpoints: []}\nroutes: [{cluster: a}, {cluster: c}]",
            ["1: clustrs: unknown key", "3: routes[1].cluster: no cluster is named 'c'"],
        ),
        (f"{CLUSTERS}routs: [{{clustr: a}}]", ["2: routs: unknown key", "2: routes[0].clustr: unknown key"]),
        (
            "clusters: {a: {endpoint: [{ulr: http://h}]}}",
            ["1: clusters.a.endpoint: unknown key", "1: clusters.a.endpoints[0].ulr: unknown key"],
        ),
        (
            f"{CLUSTERS}lb_policy: cluster_metrics\nlb_config: {{mode: Fast, service_list: [a, c]}}",
            ["3: lb_config.mode: 'Fast' is not one", "3: lb_config.service_list[1]: no cluster is named 'c'"],
        ),
        (
            f"{CLUSTERS}lb_policy: cluster_metrics\nlb_config: {{mode: LeastBusy, service_lst: [a, c]}}",
            [
                "3: lb_config.service_lst: unknown key",
                "3: lb_config.service_list[1]: no cluster is named 'c'",
            ],
        ),
        (f"{ONE}host: 127.0.0.1\ntimeout: 5", ["2: host: unknown key", "3: timeout: unknown key"]),
        (
            "listen: nowhere",
            ["1: listen: 'nowhere': the port is missing", "1: the key 'clusters' is missing"],
        ),
        ("!!python/object:x {}", ["1: the tag !!python/object:x is not allowed"]),
    ],
)
def test_a_typo_hides_no_other_fault_and_is_told_once(text: str, expected: list[str]) -> None:
    told = problems(text)
    assert len(told) == len(expected), told
    assert all(line.startswith(start) for line, start in zip(told, expected, strict=True)), told
