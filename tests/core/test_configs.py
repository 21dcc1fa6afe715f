"""The examples in configs/ load, and there is one for every policy."""

from pathlib import Path

import pytest

from lb_core.config import load, warnings
from lb_core.policies import CLUSTER_POLICIES, POLICIES
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.runtime import Runtime

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_loads_and_makes_a_working_balancer(path: Path) -> None:
    runtime = Runtime(load(path, env={}))
    assert runtime.clusters
    assert not warnings(runtime.config)
    assert path.read_text().startswith("#"), "an example says what it shows"


def test_no_example_has_a_secret_that_everybody_knows() -> None:
    for path in CONFIGS.glob("*.yaml"):
        config = load(path, env={})
        for policy in (config.default_policy, *(route.policy for route in config.routes)):
            if policy is not None and isinstance(policy.policy, PrefixCache):
                assert policy.policy.secret is None, path


def test_every_policy_has_an_example_that_uses_it() -> None:
    used = set()
    for path in CONFIGS.glob("*.yaml"):
        config = load(path, env={})
        policies = [config.default_policy, *(route.policy for route in config.routes)]
        used |= {policy.name for policy in policies if policy} | {c.balance for c in config.clusters.values()}
    assert used == {*POLICIES, *CLUSTER_POLICIES}
