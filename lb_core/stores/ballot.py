"""A decision in the form in which the acquire script is given it: short, and mostly made beforehand."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lb_core.types import Choice, Decision

type Column = tuple[str, ...]
type Details = tuple[Column, Column, Column]
"""Weights, virtual loads, limits ("" is none)."""

LONGEST = 32
"""Endpoints of one tier sent with a request. Above it the server would take longer than 100 µs."""

_BEST = 24
"""Of these, how many are among the least loaded as far as is known; the others are any."""

_SHORTLIST = 2 * _BEST
_SHORTLIST_S = 0.05
_KEPT = 64
_MIX = 9973


class Slate(NamedTuple):
    """The choices of one tier in columns. No `details` means weight 1, no virtual load, no limit."""

    names: tuple[str, ...]
    details: Details | None
    choices: Mapping[str, Choice]

    @classmethod
    def of(cls, choices: tuple[Choice, ...]) -> "Slate":
        """Write them down."""
        names = tuple([choice.endpoint.name for choice in choices])
        weights = tuple([repr(choice.endpoint.weight) for choice in choices])
        virtual = tuple([repr(choice.virtual_load) for choice in choices])
        limits = tuple(["" if (n := choice.endpoint.max_in_flight) is None else str(n) for choice in choices])
        plain = set(weights) <= {"1.0", "1"} and set(virtual) <= {"0.0", "0"} and not any(limits)
        return cls(
            names, None if plain else (weights, virtual, limits), dict(zip(names, choices, strict=True))
        )

    def all_details(self) -> Details:
        """The columns, also where there is nothing to say."""
        size = len(self.names)
        return self.details or (("1",) * size, ("0",) * size, ("",) * size)


@dataclass(frozen=True, slots=True)
class Ballot:
    """What acquire is asked: `arguments` from the limit on, and what the reply is read by."""

    arguments: tuple[str, ...]
    names: tuple[str, ...]
    """Of all slates, in the order of the counts in the reply."""
    slates: tuple[Slate, ...]
    complete: bool
    """False when endpoints were left out, so that `full` may be said of these alone."""


@dataclass(slots=True)
class _Kept:
    choices: tuple[Choice, ...]
    slate: Slate | None = None
    shortlist: tuple[Choice, ...] = ()
    made_at: float = float("-inf")


class Ballots:
    """Writes decisions down for one cluster.

    A slate is kept for as long as its tuple of choices is the same object. From a tier of more than 32
    endpoints it sends 24 of the 48 that have the least load as last heard, and 8 of all. The 48 are found
    anew every 50 ms, and equals among them change each time.
    """

    def __init__(self, in_flight: Mapping[str, int], clock: Callable[[], float]) -> None:
        self._in_flight = in_flight
        self._clock = clock
        self._kept: dict[int, _Kept] = {}

    def write(self, decision: Decision, tie: float, *, whole: bool = False) -> Ballot:
        """Write a decision down; `whole` leaves no endpoint out, however many there are."""
        complete = True
        slates = []
        for tier in decision.tiers:
            kept = self._keep(tier.choices)
            if whole or len(tier.choices) <= LONGEST:
                if kept.slate is None:
                    kept.slate = Slate.of(tier.choices)
                slates.append(kept.slate)
            else:
                complete = False
                slates.append(Slate.of(self._sample(kept, tie)))
        limit = "" if decision.max_in_flight is None else str(decision.max_in_flight)
        sizes = tuple([str(len(slate.names)) for slate in slates])
        if len(slates) == 1:
            names, details = slates[0].names, slates[0].details
        else:
            names = tuple([name for slate in slates for name in slate.names])
            details = None if all(slate.details is None for slate in slates) else _joined(slates)
        columns = names if details is None else (*names, *details[0], *details[1], *details[2])
        return Ballot((limit, str(len(slates)), *sizes, *columns), names, tuple(slates), complete)

    def _keep(self, choices: tuple[Choice, ...]) -> _Kept:
        kept = self._kept.get(id(choices))
        if kept is None or kept.choices is not choices:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[id(choices)] = _Kept(choices)
        return kept

    def _sample(self, kept: _Kept, tie: float) -> tuple[Choice, ...]:
        choices, now = kept.choices, self._clock()
        if now - kept.made_at >= _SHORTLIST_S:
            mixed = random.sample(choices, len(choices))
            mixed.sort(key=self._load)
            kept.shortlist, kept.made_at = tuple(mixed[:_SHORTLIST]), now
        mixed_tie = tie * _MIX % 1  # the script draws by `tie` itself among those that it is sent
        best, start = kept.shortlist, int(mixed_tie * len(kept.shortlist))
        picked = {choice.endpoint.name: choice for choice in (best + best)[start : start + _BEST]}
        stride = len(choices) // (LONGEST - _BEST)
        offset = int(mixed_tie * _MIX % 1 * stride)
        for choice in choices[offset::stride][: LONGEST - _BEST]:
            picked[choice.endpoint.name] = choice
        return tuple(picked.values())

    def _load(self, choice: Choice) -> float:
        count = self._in_flight.get(choice.endpoint.name, 0)
        return (count + choice.virtual_load) / choice.endpoint.weight


def _joined(slates: list[Slate]) -> Details:
    weights, virtual, limits = zip(*[slate.all_details() for slate in slates], strict=True)
    return sum(weights, ()), sum(virtual, ()), sum(limits, ())
