"""What is told of endpoints beside what requests show: by configuration, pages, checks, people, balancers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from math import inf

from lb_core.health.config import ChecksConfig, HealthConfig
from lb_core.health.fleet import News
from lb_core.health.member import Member
from lb_core.health.outlier import Phase
from lb_core.health.selection import may_eject
from lb_core.types import Endpoint


class Reports(ABC):
    """The half of `Health` that listens. State goes by endpoints' names, over `members` and `configure`."""

    def __init__(
        self,
        config: HealthConfig,
        endpoints: Iterable[Endpoint],
        *,
        clock: Callable[[], float],
        dice: Callable[[], float],
    ) -> None:
        self.config = config
        self._clock = clock
        self._dice = dice
        self._members = {each.name: Member(each, config, dice) for each in endpoints}
        self._due = -inf
        """When something changes by time alone."""

    @abstractmethod
    def review(self) -> None:
        """Look at everything again."""

    @abstractmethod
    def alive(self, member: Member) -> None:
        """Its engine says something."""

    def members(self, endpoints: Iterable[Endpoint]) -> None:
        """Take another list of endpoints: known names keep their state, new ones start slowly.

        Whether one drains follows the list where that changed; else what was done by hand stays.
        """
        now = self._clock()
        known, self._members = self._members, {}
        changed: list[Endpoint] = []
        for endpoint in endpoints:
            member = known.get(endpoint.name)
            if member is None:
                member = Member(endpoint, self.config, self._dice)
                member.ramp_from = now
                member.quiet = False
            member.weight = endpoint.weight
            self._members[endpoint.name] = member
            if endpoint.draining is not member.configured_draining:
                member.configured_draining = endpoint.draining
                changed.append(endpoint)
        for endpoint in changed:
            self._set(endpoint.name, "draining", endpoint.draining)
        self.review()

    def configure(self, config: HealthConfig) -> None:
        """Go on with other parameters."""
        self.config = config
        for member in self._members.values():
            member.outlier.configure(config)
            if config.checks is None:
                member.failing_checks = False
        self.review()

    def drain(self, name: str) -> None:
        """Give it nothing from now on. Raises KeyError for an unknown name."""
        self._set(name, "draining", True)

    def undrain(self, name: str) -> None:
        """Take `drain` back; it starts slowly. Raises KeyError for an unknown name."""
        self._set(name, "draining", False)

    def stalled(self, name: str, stalled: bool) -> None:
        """By its metrics it has work and makes no progress, or does again. Unknown names are ignored."""
        if name in self._members:
            self._set(name, "stalled", stalled)

    def sleeping(self, name: str, sleeping: bool) -> None:
        """By its metrics its weights are not loaded, or are again. Unknown names are ignored."""
        if name in self._members:
            self._set(name, "sleeping", sleeping)

    def restarted(self, name: str) -> None:
        """Its counters began anew: its caches are cold. Unknown names are ignored."""
        if (member := self._members.get(name)) is not None:
            member.ramp_from = self._clock()
            self._touch(member)
            self.review()

    def stepped(self, name: str) -> None:
        """By its metrics its engine does something. Unknown names are ignored."""
        if (member := self._members.get(name)) is not None:
            self.alive(member)

    def page(self, name: str, hangs: bool) -> None:
        """Its metrics page does not come in time any more, or does again. Unknown names are ignored."""
        if (member := self._members.get(name)) is not None:
            member.silence.page(self._clock(), hangs)

    def checked(self, name: str, good: bool) -> None:
        """One active check. Unknown names are ignored."""
        member = self._members.get(name)
        if member is not None and member.checked(good, self.config.checks or ChecksConfig()):
            if good:
                member.ramp_from = self._clock()
                member.outlier.unreachable = False
            self._touch(member)
            self.review()

    def heard(self, news: Iterable[News]) -> None:
        """What other balancers found out; it counts unless something newer was seen here."""
        now = self._clock()
        for item in news:
            member = self._members.get(item.endpoint)
            if member is None:
                continue
            outlier, then = member.outlier, now - item.age_s
            if item.out and outlier.succeeded_at < then and self._may_eject(member, item.reason):
                outlier.hear_ejected(now, item.reason, item.left_s)
                self._touch(member)
            elif not item.out and outlier.hear_recovered(now, then):
                member.ramp_from = now
                self._touch(member)
        if self._due == -inf:
            self.review()

    def _may_eject(self, member: Member, reason: str) -> bool:
        out = member.outlier.phase is not Phase.HEALTHY
        return out or may_eject(self._members.values(), reason, self.config)

    def _set(self, name: str, flag: str, value: bool) -> None:
        member = self._members[name]
        if getattr(member, flag) is not value:
            setattr(member, flag, value)
            if not value:
                member.ramp_from = self._clock()
            self._touch(member)
            self.review()

    def _touch(self, member: Member) -> None:
        member.quiet = False
        self._due = -inf
