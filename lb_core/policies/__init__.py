"""The policies, by the names that they have in the configuration. A new one is a file and a line here."""

from lb_core.policies.base import ClusterPolicy, Policy
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.policies.consistent_hash import ConsistentHash
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.policies.least_request import GlobalLeastRequest, LeastRequest
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.policies.random import Random
from lb_core.policies.round_robin import RoundRobin

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        ConsistentHash,
        EndpointMetrics,
        GlobalLeastRequest,
        LeastRequest,
        PrefixCache,
        Random,
        RoundRobin,
    )
}
"""Those that choose an endpoint within a cluster."""

CLUSTER_POLICIES: dict[str, type[ClusterPolicy]] = {policy.name: policy for policy in (ClusterMetrics,)}
"""Those that choose among clusters."""

__all__ = ["CLUSTER_POLICIES", "POLICIES", "ClusterPolicy", "Policy"]
