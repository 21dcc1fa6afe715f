"""The fewest requests in flight."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lb_core.types import Decision, Request, Snapshot, Tier


@dataclass(frozen=True, slots=True)
class LeastRequest:
    """Every endpoint is equal, so the store takes the one with the fewest requests in flight.

    Counts are divided by the endpoint's weight. Ties are broken evenly, in proportion to the weights.
    """

    name: ClassVar[str] = "least_request"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """One tier of all."""
        return Decision(self.name, (Tier(snapshot.candidates, "least_request"),))


@dataclass(frozen=True, slots=True)
class GlobalLeastRequest:
    """Least request over all balancers that share a store, with an optional limit for each endpoint.

    `max_request_count`: the most requests that one endpoint may have in flight; when every endpoint
    has that many the client gets 429. 0 is no limit. (Higress: `maxRequestCount`.)
    """

    name: ClassVar[str] = "global_least_request"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    max_request_count: Annotated[int, Field(ge=0)] = 0

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """One tier of all, under the limit."""
        tier = Tier(snapshot.candidates, "least_request")
        return Decision(self.name, (tier,), max_in_flight=self.max_request_count or None)
