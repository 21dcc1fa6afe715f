"""One endpoint after the other."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from lb_core.policies.base import first_then_rest
from lb_core.types import Decision, Request, Snapshot

_LONGEST_SCHEDULE = 10_000


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Smooth weighted round robin: in every turn an endpoint comes up as often as its weight says.

    With equal weights this is plain rotation. The turn is a function of the route's decision count, so
    the policy keeps no state. Algorithm: nginx's smooth weighted round robin, laid out once for the weights.
    """

    name: ClassVar[str] = "round_robin"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """The endpoint whose turn it is."""
        turn = _schedule(tuple(choice.endpoint.weight for choice in snapshot.candidates))
        first = snapshot.candidates[turn[snapshot.sequence % len(turn)]]
        return first_then_rest(self.name, first, snapshot, reason="turn")


@lru_cache(maxsize=64)
def _schedule(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Indices of `weights` in the order of one full turn."""
    whole = _whole(weights)
    total = sum(whole)
    if total == len(whole):
        return tuple(range(len(whole)))
    credit = [0] * len(whole)
    turn = []
    for _ in range(total):
        for index, weight in enumerate(whole):
            credit[index] += weight
        best = max(range(len(whole)), key=credit.__getitem__)
        credit[best] -= total
        turn.append(best)
    return tuple(turn)


def _whole(weights: tuple[float, ...]) -> list[int]:
    """Whole numbers in the ratio of `weights`, coarsened where the turn would get too long."""
    ratios = [Fraction(weight).limit_denominator(100) or Fraction(1, 100) for weight in weights]
    scale = math.lcm(*(ratio.denominator for ratio in ratios))
    whole = [int(ratio * scale) for ratio in ratios]
    common = math.gcd(*whole)
    whole = [weight // common for weight in whole]
    longest = max(_LONGEST_SCHEDULE // len(whole), 2) * len(whole)
    if sum(whole) > longest:
        shrink = longest / sum(whole)
        whole = [max(1, round(weight * shrink)) for weight in whole]
    return whole
