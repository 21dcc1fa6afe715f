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
