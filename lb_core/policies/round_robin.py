"""One endpoint after the other."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar

from lb_core.policies.base import first_then_rest
from lb_core.types import Decision, Request, Snapshot

_DIGITS = 4
"""Digits of the least weight that count at least; the others are as exact as that."""
_SMALLEST = 12
"""Decimal places beyond which a weight is as small as any."""


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Smooth weighted round robin: in every cycle an endpoint comes up as often as its weight says.

    With equal weights this is plain rotation. The turn is a function of the route's decision count, so
    the policy keeps no state, and no table of turns, which would take the event loop 100 ms and more for
    each new set of weights.

    Algorithm: the endpoints are halved by weight again and again, and at each halving the turns are shared
    out between both sides as evenly as whole numbers allow (Bresenham's line). Over a cycle that is exact,
    and meanwhile an endpoint is never much ahead or behind: 1.8 turns at most in 300 random sets of weights.
    """

    name: ClassVar[str] = "round_robin"
    lb_type: ClassVar[str] = "endpoint"
    signals: ClassVar[frozenset[str]] = frozenset()

    def decide(self, request: Request, snapshot: Snapshot) -> Decision:
        """The endpoint whose turn it is."""
        bounds = _bounds(tuple(choice.endpoint.weight for choice in snapshot.candidates))
        first = snapshot.candidates[_whose(bounds, snapshot.sequence)]
        return first_then_rest(self.name, first, snapshot, reason="turn")


@lru_cache(maxsize=64)
def _bounds(weights: tuple[float, ...]) -> tuple[int, ...]:
    """0, then the sums of the weights so far in whole numbers; the last is the length of a cycle."""
    places = min(max(-math.floor(math.log10(min(weights))), 0), _SMALLEST)
    scale = 10.0 ** (places + _DIGITS)
    whole = [max(round(weight * scale), 1) for weight in weights]
    common = math.gcd(*whole)
    return (0, *accumulate(weight // common for weight in whole))


def _whose(bounds: Sequence[int], sequence: int) -> int:
    """Give the index of the weight whose turn it is."""
    number = sequence % bounds[-1]
    low, high = 0, len(bounds) - 1
    if bounds[-1] == high:
        return number
    while high - low > 1:
        total = bounds[high] - bounds[low]
        middle = bisect_left(bounds, bounds[low] + total // 2, low + 1, high - 1)
        left = bounds[middle] - bounds[low]
        # Of the first n turns, n * left / total are the left side's, rounded.
        before = (2 * number * left + total) // (2 * total)
        after = (2 * (number + 1) * left + total) // (2 * total)
        if after > before:
            high, number = middle, before
        else:
            low, number = middle, number - before
    return low
