"""The endpoint that has the longest part of the prompt in its cache."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import Field

from lb_core.policies.headers import HeaderRead
from lb_core.types import Choice, Decision, Request, Snapshot, Tier

TTL_S = 1800
MAX_ENTRIES = 100_000


@dataclass(frozen=True, slots=True)
class PrefixCache:
    """The owner of the longest known prefix of the prompt; for new prompts, the fewest requests in flight.

    A prefix belongs to the endpoint that a prompt with it was last sent to, so a later turn of a
    conversation goes where its earlier turns went. While the owner is at its limit, the others take it, and
    with it the prefix; when the owner is no candidate any more, all are equal. How prompts are cut, and what
    keeps those of two tenants apart, is told in `lb_core.prefix.keys`.

    `redis_key_ttl_s`: how long a prefix is known after its last use, in this process too (Higress:
    `redisKeyTTL`). `max_imbalance`: the owner gives way when it has more than this many requests in flight
    above what the least loaded endpoint has, in proportion to their weights; None is never.
    `max_prefix_entries`: keys remembered in this process, where there is no Redis. `tenant_header`: the
    header whose value tells tenants apart; "" is no tenants, and a request without `authorization` is told
    by its `x-api-key`. `secret`: what keys are made with; None is the environment variable
    AI_LB_PREFIX_SECRET, and without that a random one, which balancers share through Redis.
    """

    name: ClassVar[str] = "prefix_cache"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    redis_key_ttl_s: Annotated[int, Field(gt=0)] = TTL_S
    max_imbalance: Annotated[int, Field(ge=0)] | None = None
    max_prefix_entries: Annotated[int, Field(gt=0)] = MAX_ENTRIES
    tenant_header: HeaderRead = "authorization"
    secret: str | None = field(default=None, repr=False)

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """The owner, then the others; all alike where there is no owner to prefer."""
        match, candidates = snapshot.prefix, snapshot.candidates
        if match is None:
            return self._all_alike(snapshot, "no_prefix")
        owner = next((choice for choice in candidates if choice.endpoint.name == match.owner), None)
        if owner is None:
            return self._all_alike(snapshot, "owner_gone", f"{match.owner} is no candidate")
        if self.max_imbalance is not None and (above := _above_least(owner, snapshot)) > self.max_imbalance:
            return self._all_alike(snapshot, "imbalance", f"{match.owner} has {above:g} more in flight")
        tiers = [Tier((owner,), "prefix", f"{match.matched} of {match.cuts} cuts")]
        if others := tuple(choice for choice in candidates if choice is not owner):
            tiers.append(Tier(others, "owner_full", f"{match.owner} is full"))
        return Decision(self.name, tuple(tiers))

    def _all_alike(self, snapshot: Snapshot, reason: str, detail: str = "") -> Decision:
        return Decision(self.name, (Tier(snapshot.candidates, reason, detail),))


def _above_least(owner: Choice, snapshot: Snapshot) -> float:
    """How many requests the owner has above what it would have at the load of the least loaded."""

    def count(choice: Choice) -> float:
        return snapshot.in_flight.get(choice.endpoint.name, 0) + choice.virtual_load

    least = min(count(choice) / choice.endpoint.weight for choice in snapshot.candidates)
    return count(owner) - least * owner.endpoint.weight
