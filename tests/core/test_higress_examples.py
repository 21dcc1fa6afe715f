"""The examples of Higress's README for metrics, copied to tests/data/higress, work as they are.

The three for endpoints say nothing of endpoints, which Higress has from elsewhere: clusters are appended.
"""

from pathlib import Path

import pytest

from lb_core.config import loads
from lb_core.engines.model import EngineMetrics, Scrape
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome, Placement

EXAMPLES = Path(__file__).resolve().parents[1] / "data" / "higress"
TARGETS = {
    "metrics_based_default": "",
    "metrics_based_waiting": "vllm:num_requests_waiting",
    "metrics_based_running": "vllm:num_requests_running",
}
CLUSTERS = """
clusters:
  engines:
    endpoints:
      - {url: "http://127.0.0.1:1", name: a}
      - {url: "http://127.0.0.1:2", name: b}
      - {url: "http://127.0.0.1:3", name: c}
"""
GOOD = Outcome(Ending.COMPLETE, 200, duration_s=0.1)


def runtime_of(name: str, more: str = "") -> Runtime:
    return Runtime(loads((EXAMPLES / f"{name}.yaml").read_text() + more, name, {}))


async def routed(runtime: Runtime) -> Placement:
    request = runtime.balancer.request(
        host="api.test", path="/v1/chat/completions", headers={}, session=None, llm=None
    )
    return await runtime.balancer.route(request, started=0.0)


def report(runtime: Runtime, endpoint: str, busy: float) -> None:
    """What the scraper hands over after a visit."""
    at = runtime.balancer.clock()
    metrics = EngineMetrics(
        at,
        dialect="vllm",
        waiting=busy,
        running=busy,
        kv_usage=busy / 100,
        raw={target: busy for target in TARGETS.values() if target},
    )
    runtime.clusters["engines"].board.take(Scrape(endpoint, at, 0.001, metrics))


def test_there_are_the_four_examples() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == {*TARGETS, "cluster_metrics"}


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
async def test_an_example_for_endpoints_routes_by_what_they_report(name: str, target: str) -> None:
    runtime = runtime_of(name, CLUSTERS)
    config = runtime.config.default_policy
    assert config is not None
    assert isinstance(config.policy, EndpointMetrics)
    assert config.policy.metric_policy == ("least" if target else "default")
    assert (config.policy.target_metric, config.policy.rate_limit) == (target, 0.6)
    for endpoint, busy in (("a", 20.0), ("b", 0.0), ("c", 30.0)):
        report(runtime, endpoint, busy)
    placement = await routed(runtime)
    assert (placement.endpoint.name, placement.decision.policy) == ("b", "endpoint_metrics")
    runtime.balancer.finish(placement, GOOD)


@pytest.mark.parametrize("name", TARGETS)
async def test_its_rate_limit_keeps_one_endpoint_from_getting_everything(name: str) -> None:
    runtime = runtime_of(name, CLUSTERS)
    for endpoint, busy in (("a", 20.0), ("b", 0.0), ("c", 30.0)):
        report(runtime, endpoint, busy)
    chosen = []
    for _ in range(100):
        placement = await routed(runtime)
        chosen.append(placement.endpoint.name)
        runtime.balancer.finish(placement, GOOD)
    assert 55 <= chosen.count("b") <= 61


async def test_the_example_for_services_routes_to_the_hosts_that_it_names() -> None:
    runtime = runtime_of("cluster_metrics")
    config = runtime.config.default_policy
    assert config is not None
    assert isinstance(config.policy, ClusterMetrics)
    assert (config.policy.mode, config.policy.rate_limit) == ("LeastTotalLatency", 0.6)
    hosts = set()
    for _ in range(4):
        placement = await routed(runtime)
        hosts.add((placement.cluster, placement.endpoint.host, placement.endpoint.port))
        assert placement.service_header == "x-envoy-target-cluster"
        runtime.balancer.finish(placement, GOOD)
    assert hosts == {
        ("outbound|80||test-1.dns", "test-1.dns", 80),
        ("outbound|80||test-2.static", "test-2.static", 80),
    }
