"""What a policy is: a pure, synchronous function from a request and a snapshot to preferences.

A policy is a frozen dataclass. Its fields are its parameters, with the names that they have in
`lb_config`; its docstring is its algorithm. It places nothing: it returns tiers of equals, and the store
takes the least loaded endpoint with room from the first tier that has one. So a policy that has one
favourite still says what comes next, which is the overflow and the order of failover.
"""

from typing import ClassVar, Protocol

from lb_core.services import ServiceDecision, Services
from lb_core.types import Choice, Decision, Request, Snapshot, Tier


class Policy(Protocol):
    """The contract. `tests/core/test_policy_contract.py` holds every registered policy to it."""

    name: ClassVar[str]
    lb_type: ClassVar[str]
    """`endpoint`: chooses within one cluster."""
    signals: ClassVar[frozenset[str]]
    """What it needs beyond what is always known: `metrics` is what the engines report, or nothing."""

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """Give the preferences for this request; never raises, never empty while there are candidates."""
        ...


class ClusterPolicy(Protocol):
    """A policy that chooses among clusters; within the chosen one, its own strategy chooses the endpoint."""

    name: ClassVar[str]
    lb_type: ClassVar[str]
    """`cluster`."""
    signals: ClassVar[frozenset[str]]

    @property
    def service_list(self) -> tuple[str, ...]:
        """The names of the clusters."""
        ...

    @property
    def cluster_header(self) -> str:
        """The request header that tells the service its name."""
        ...

    @property
    def queue_size(self) -> int:
        """How many samples are kept of each service."""
        ...

    @property
    def sample_ttl(self) -> float:
        """Seconds after which a sample is forgotten."""
        ...

    def choose(self, request: Request, services: Services) -> ServiceDecision:
        """Rank the services for this request; never raises, never leaves one out."""
        ...


def first_then_rest(policy: str, first: Choice, snapshot: Snapshot, *, reason: str) -> Decision:
    """Prefer one endpoint; while it is at its limit, the least loaded of all."""
    full = f"{first.endpoint.name} is full"
    return Decision(policy, (Tier((first,), reason), Tier(snapshot.candidates, "overflow", full)))
