"""The health of one cluster: what attempts, checks and people report, and who may be given requests.

A state machine without threads, tasks or timers: time comes in as `clock`, and what changes by time
alone is noticed by the next call, or by `tick`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import inf

from lb_core.health.attempt import Attempt, Work
from lb_core.health.config import HealthConfig
from lb_core.health.fleet import PROBE_TTL_S, Alone, Fleet
from lb_core.health.member import DENIED_S, Change, Member, State, change_of
from lb_core.health.outlier import SILENT
from lb_core.health.reports import Reports
from lb_core.health.selection import Eligibility, Views, slow_start_loads
from lb_core.health.verdict import Kind, Verdict
from lb_core.types import Endpoint

_PATIENCE = 1 / 25
"""Of `silent_s`: how long a client that leaves must have waited for it to tell something of the engine."""
_SMOOTHING = 0.1
"""Of the mean duration: about the last twenty requests."""


class Health(Reports):
    """Who may be given requests.

    `dice` gives numbers in [0, 1), for the jitter of ejection times. `on_change` is told every change of
    state, once; it must not call back.
    """

    def __init__(
        self,
        config: HealthConfig,
        endpoints: Iterable[Endpoint],
        *,
        clock: Callable[[], float],
        dice: Callable[[], float],
        on_change: Callable[[Change], None] = lambda change: None,
        fleet: Fleet | None = None,
    ) -> None:
        super().__init__(config, endpoints, clock=clock, dice=dice)
        self._on_change = on_change
        self.fleet = fleet or Alone()
        self._mean_s: float | None = None
        self._panic = False
        self._ramps_until = -inf
        self._views = Views()
        self._now_eligible: Eligibility | None = None

    # -- before a request -------------------------------------------------------------------------

    def eligible(self, in_flight: Mapping[str, int], among: frozenset[str] | None = None) -> Eligibility:
        """Who may be given a request now. `among` are the endpoints that can serve it; None is all.

        Panic and the rest of last resorts are judged among these, so that a model of which all endpoints
        fail is not refused because other models are well. `available` holds none that are not among them
        while anything is wrong, and may while nothing is.
        """
        now = self._clock()
        if now >= self._due:
            self._review(now)
        if self._now_eligible is not None:
            return self._now_eligible
        selection, eligible = self._views.of(among, self._members.values(), now, self.config)
        if now >= self._ramps_until and not selection.probes:
            return eligible
        loads = dict(eligible.virtual_loads)
        for name, load in slow_start_loads(selection.available, in_flight, now, self.config).items():
            loads[name] = loads.get(name, 0.0) + load
        return replace(eligible, virtual_loads=loads) if loads else eligible

    async def admit(self, name: str, eligible: Eligibility, work: Work = Work.OTHER) -> Attempt | None:
        """Begin an attempt at an endpoint chosen by `eligible`; None if it must go elsewhere.

        That is so when the endpoint is gone, or when its one probe is under way, here or at another
        balancer. The next `eligible` does not offer it.
        """
        member = self._members.get(name)
        if member is None or not member.present:
            return None
        attempt = Attempt(self, member, self._clock(), work)
        if name not in eligible.probes or member.sound:
            return attempt.begin()
        if member.probe is not None or member.outlier.shut:
            return None
        member.probe = attempt
        self._touch(member)
        claimed = False
        try:
            claimed = await self.fleet.claim(name, PROBE_TTL_S)
        finally:
            if not claimed:
                member.probe = None
                member.denied_until = self._clock() + DENIED_S
                self._touch(member)
        return attempt.begin() if claimed else None

    def rest_s(self, *, besides: str, among: frozenset[str] | None = None) -> float:
        """Seconds until another endpoint than this takes requests: 0 if one does, inf if there is none.

        `among` are the endpoints that can serve the request; None is all.
        """
        now = self._clock()
        others = (
            member
            for member in self._members.values()
            if member.name != besides and (among is None or member.name in among)
        )
        rests = [max(member.resting_until - now, 0.0) for member in others if member.present and member.sound]
        return min(rests, default=inf)

    # -- what attempts tell -----------------------------------------------------------------------

    def succeeded(self, member: Member, attempt: Attempt) -> int:
        """Count a success; for `Attempt`."""
        now = self._clock()
        was_unreachable = member.outlier.unreachable
        returned, tick = member.outlier.succeeded(now, attempt.started)
        if returned:
            member.ramp_from = now
            self.fleet.recovered(member.name)
        self._free_probe(member, attempt)
        if returned or member.outlier.unreachable is not was_unreachable:
            self._touch(member)
        if self._due == -inf:
            self._review(now)
        return tick

    def alive(self, member: Member) -> None:
        """Its engine says something; for `Attempt`."""
        now = self._clock()
        member.silence.alive(now)
        if member.outlier.alive(now):
            member.ramp_from = now
            self.fleet.recovered(member.name)
            self._touch(member)
            self._review(now)

    def ended(self, member: Member, attempt: Attempt, verdict: Verdict) -> None:
        """Count the end of an attempt; for `Attempt`."""
        now = self._clock()
        if verdict.kind in {Kind.IGNORED, Kind.TIMED_OUT}:
            self._given_up(member, attempt, verdict, now)
        elif verdict.kind is Kind.SUCCESS:
            mean, took = self._mean_s, now - attempt.started
            self._mean_s = took if mean is None else mean + _SMOOTHING * (took - mean)
        elif verdict.kind is Kind.BUSY:
            member.resting_until = max(member.resting_until, now + verdict.rest_s)
            self._touch(member)
        elif verdict.kind in {Kind.FAILURE, Kind.REFUSED}:
            self._failed(member, attempt, now, refused=verdict.kind is Kind.REFUSED)
        self._free_probe(member, attempt)
        if self._due == -inf:
            self._review(now)

    def _failed(self, member: Member, attempt: Attempt, now: float, *, refused: bool) -> None:
        limit = self.config.max_ghost_s
        ghost_s = limit if self._mean_s is None else min(self._mean_s, limit)
        if ghost_s > 0:
            member.ghosts.append(now + ghost_s)
        outlier = member.outlier
        if refused:
            reason = outlier.refused(now, attempt.started)
        else:
            reason = outlier.failed(now, attempt.started, endpoints=len(self._members))
        self._eject(member, reason, now)
        self._touch(member)

    def _given_up(self, member: Member, attempt: Attempt, verdict: Verdict, now: float) -> None:
        """Nothing came of an attempt in time, or its client did not wait for it."""
        silent_s, outlier = self.config.silent_s, member.outlier
        if silent_s is None or attempt.answered or attempt.work is Work.OTHER:
            return
        if verdict.kind is not Kind.TIMED_OUT and now - attempt.started < _PATIENCE * silent_s:
            return  # who leaves at once tells nothing
        member.silence.given_up(now, attempt.started, silent_s)
        if member.probe is attempt and outlier.reason == SILENT:
            self._eject(member, outlier.silent(now), now)

    def _eject(self, member: Member, reason: str | None, now: float) -> None:
        if reason is not None and self._may_eject(member, reason):
            member.outlier.eject(now, reason)
            self._touch(member)
            self.fleet.ejected(member.name, member.outlier.until - now, reason)

    def _free_probe(self, member: Member, attempt: Attempt) -> None:
        if member.probe is attempt:
            member.probe = None
            self._touch(member)
            self.fleet.release(member.name)

    async def listen(self) -> None:
        """Take in what other balancers find out; ends by being cancelled, or at once where there are none."""
        await self.fleet.listen(self.heard)

    # -- what follows -----------------------------------------------------------------------------

    def tick(self) -> None:
        """Notice what changed by time; once a second, so that it is told also while there are no requests."""
        now, silent_s = self._clock(), self.config.silent_s
        for member in self._members.values():
            if silent_s is not None and member.silence.lasts(now, silent_s):
                self._eject(member, member.outlier.silent(now), now)
            if member.probe is not None:
                self.fleet.renew(member.name, PROBE_TTL_S)
        if now >= self._due:
            self.review()

    def states(self) -> Mapping[str, State]:
        """The state of every endpoint, as told last. May be asked from another thread."""
        return {name: member.shown for name, member in tuple(self._members.items())}

    def review(self) -> None:
        """Look at everything again."""
        self._review(self._clock())

    def _review(self, now: float) -> None:
        self._views.clear()
        self._now_eligible = None
        noisy = [member for member in self._members.values() if not member.quiet]
        for member in noisy:
            member.outlier.advance(now)
            state = member.state(now)
            if state is not member.shown:
                before, member.shown = member.shown, state
                self._on_change(change_of(member, before))
        selection, eligible = self._views.of(None, self._members.values(), now, self.config)
        self._ramps_until = -inf
        turns = []
        for member in noisy:
            ramp_end = member.ramp_from + self.config.slow_start_s
            self._ramps_until = max(self._ramps_until, ramp_end)
            mine = [point for point in (*member.turning_points(), ramp_end) if now < point < inf]
            turns += mine
            member.quiet = not mine and member.shown is State.HEALTHY
        self._due = min(turns, default=inf)
        if selection.panic is not self._panic:
            self._panic = selection.panic
            told = ("normal", "panic") if self._panic else ("panic", "normal")
            self._on_change(Change(None, *told, "share_of_healthy"))
        if not (eligible.out or eligible.probes or eligible.virtual_loads) and now >= self._ramps_until:
            self._now_eligible = eligible
