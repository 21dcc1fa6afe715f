"""The one rule by which a request is placed; the Redis script follows it word for word."""

from collections.abc import Mapping

from lb_core.drawing import weighted_pick
from lb_core.types import Choice, Decision, Endpoint

FULL = "All endpoints are at their limit of requests in flight."
"""What the client is told when there is no place."""


def limit_of(endpoint: Endpoint, max_in_flight: int | None) -> int | None:
    """The lower of an endpoint's own limit and that of the policy; None is no limit."""
    limits = [limit for limit in (endpoint.max_in_flight, max_in_flight) if limit is not None]
    return min(limits, default=None)


def place(decision: Decision, in_flight: Mapping[str, int], tie: float) -> tuple[int, Choice] | None:
    """Give the tier's index and the choice taken, None when every endpoint of every tier is full.

    From the first tier in which an endpoint has room, the least load; load is (requests in flight +
    virtual load) / weight. Equal loads are drawn by `tie`, in [0, 1), in proportion to the weights.
    """
    limit = decision.max_in_flight
    for index, tier in enumerate(decision.tiers):
        least = float("inf")
        tied: list[Choice] = []
        for choice in tier.choices:
            endpoint = choice.endpoint
            count = in_flight.get(endpoint.name, 0)
            if limit is not None and count >= limit:
                continue
            if endpoint.max_in_flight is not None and count >= endpoint.max_in_flight:
                continue
            load = (count + choice.virtual_load) / endpoint.weight
            if load < least:
                least = load
                tied = [choice]
            elif load == least:
                tied.append(choice)
        if tied:
            return index, weighted_pick(tied, tie)
    return None
