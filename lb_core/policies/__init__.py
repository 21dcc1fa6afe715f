"""The policies, by the names that they have in the configuration. A new one is a file and a line here."""

from lb_core.policies.base import Policy
from lb_core.policies.consistent_hash import ConsistentHash
from lb_core.policies.least_request import GlobalLeastRequest, LeastRequest
from lb_core.policies.random import Random
from lb_core.policies.round_robin import RoundRobin

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (ConsistentHash, GlobalLeastRequest, LeastRequest, Random, RoundRobin)
}

__all__ = ["POLICIES", "Policy"]
