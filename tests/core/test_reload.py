"""What a reload keeps, what it changes, and that it changes nothing where it fails."""

import pytest

from lb_core.config import loads
from lb_core.errors import ConfigError
from lb_core.runtime import Runtime

ENDPOINTS = """
clusters:
  a: {endpoints: [{url: "http://127.0.0.1:1", name: a1}], metrics: false}
  b: {endpoints: [{url: "http://127.0.0.1:2", name: b1}], metrics: false}
"""
SERVICES = """
lb_type: cluster
lb_policy: cluster_metrics
lb_config: {mode: LeastBusy, service_list: [a, b]}
"""
ROUTES = "routes: [{name: r, cluster: a}]\n"


@pytest.mark.parametrize("option", ["off", "round_robin"])
async def test_a_file_that_the_option_ai_lb_policy_forbids_changes_nothing(option: str) -> None:
    runtime = Runtime(loads(ENDPOINTS + ROUTES))
    runtime.use_policy(option)
    before = runtime.config, runtime.clusters, runtime.balancer.routes, runtime.balancer.default_policy
    with pytest.raises(ConfigError, match="the default policy chooses clusters"):
        runtime.apply(loads(ENDPOINTS + SERVICES))
    after = runtime.config, runtime.clusters, runtime.balancer.routes, runtime.balancer.default_policy
    assert all(now is then for now, then in zip(after, before, strict=True))
    runtime.use_policy("")
    runtime.apply(loads(ENDPOINTS + SERVICES))
    await runtime.close()
