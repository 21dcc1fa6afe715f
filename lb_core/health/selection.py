"""Who of a number of endpoints may be given the next request."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lb_core.health.config import HealthConfig
from lb_core.health.member import Member, State
from lb_core.health.outlier import Phase

_REMEMBERED_SUBSETS = 256
"""Clients choose models, and models subsets, so what is remembered by them is bounded."""
_NO_LOADS: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Who may be given a request now. The same object as long as nothing changes and nobody ramps up."""

    version: int
    """Of everything but `virtual_loads`."""
    available: frozenset[str]
    probes: frozenset[str] = frozenset()
    """Those of `available` that take one request only; `Health.admit` sees to it."""
    out: Mapping[str, State] = field(default_factory=dict)
    """The others, and why."""
    panic: bool = False
    virtual_loads: Mapping[str, float] = field(default_factory=dict)
    """Load to be added to the requests in flight; those without any are absent."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Who is available, as members."""

    available: Sequence[Member]
    probes: Sequence[Member]
    panic: bool


def select(members: Sequence[Member], now: float, config: HealthConfig) -> Selection:
    """Choose: those in health, or in a panic all that can be connected to; those who rest only if all do.

    If nobody is left, those that could not be connected to are tried again, one request at a time.
    """
    present = [member for member in members if member.quiet or member.present]
    pool = [member for member in present if member.quiet or member.sound]
    panic = len(pool) < config.panic_below * len(present)
    if panic:
        reachable = [member for member in present if not member.outlier.unreachable]
        pool = [member for member in reachable if not member.refused_recently(now)] or reachable
    chosen = set(pool)
    half_open = [
        member
        for member in present
        if member not in chosen and member.probeable(now) and not member.resting(now)
    ]
    awake = [member for member in pool if member.quiet or not member.resting(now)]
    if awake or half_open:
        return Selection([*awake, *half_open], half_open, panic)
    if pool:
        return Selection(pool, [], panic)
    tries = [member for member in present if member.retriable(now)]
    return Selection(tries, tries, panic)


class Views:
    """What `Health.eligible` answered, kept until `clear`; the version counts these."""

    def __init__(self) -> None:
        self._version = 0
        self._known: dict[frozenset[str] | None, tuple[Selection, Eligibility]] = {}

    def clear(self) -> None:
        """Something has changed."""
        self._version += 1
        self._known.clear()

    def of(
        self, among: frozenset[str] | None, all_members: Iterable[Member], now: float, config: HealthConfig
    ) -> tuple[Selection, Eligibility]:
        """Who of the members with these names is available; None is all."""
        if (known := self._known.get(among)) is not None:
            return known
        members = [member for member in all_members if among is None or member.name in among]
        chosen = select(members, now, config)
        names = frozenset(member.name for member in chosen.available)
        eligible = Eligibility(
            self._version,
            names,
            frozenset(member.name for member in chosen.probes),
            {member.name: member.state(now) for member in members if member.name not in names},
            chosen.panic,
            {
                member.name: float(load)
                for member in chosen.available
                if not member.quiet and (load := member.ghost_load(now))
            },
        )
        if len(self._known) >= _REMEMBERED_SUBSETS:
            self._known.clear()
        self._known[among] = chosen, eligible
        return chosen, eligible


def may_eject(members: Iterable[Member], reason: str, config: HealthConfig) -> bool:
    """Tell if one more may be ejected: never the only one, and for failures no more than the limit."""
    present = [member for member in members if member.present]
    if len(present) < 2:
        return False
    if reason == "unreachable":
        # Requests sent to it help nobody, however few others are left.
        return True
    most = max(1, int(config.max_ejected * len(present))) if config.max_ejected else 0
    return sum(member.outlier.phase is not Phase.HEALTHY for member in present) < most


def slow_start_loads(
    members: Iterable[Member], in_flight: Mapping[str, int], now: float, config: HealthConfig
) -> Mapping[str, float]:
    """Give the load that makes least request send an endpoint only its share of what it could carry.

    An endpoint with the factor f is to appear as loaded as the others when it carries f of their load,
    so (1 - f) of their mean is added. Envoy scales the weight instead; a load needs no policy to know.
    The largest factor counts as 1: where all are new there is nobody to spare them.
    """
    factors = [(member, member.factor(now, config)) for member in members]
    top = max((factor for _, factor in factors), default=1.0)
    full = [member for member, factor in factors if factor >= top]
    if len(full) == len(factors):
        return _NO_LOADS
    mean = sum(in_flight.get(member.name, 0) / member.weight for member in full) / len(full)
    if mean == 0:
        return _NO_LOADS
    return {
        member.name: (1 - factor / top) * mean * member.weight for member, factor in factors if factor < top
    }
