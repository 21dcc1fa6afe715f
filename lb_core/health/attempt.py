"""One request at one endpoint, as its health sees it."""

from typing import Protocol

from lb_core.health.member import Member
from lb_core.health.verdict import Kind, Verdict


class Keeper(Protocol):
    """Where attempts report."""

    def succeeded(self, member: Member, attempt: "Attempt") -> int:
        """Count a success; gives what `FailureShare.recant` takes."""
        ...

    def ended(self, member: Member, attempt: "Attempt", verdict: Verdict) -> None:
        """Count the end."""
        ...

    def review(self) -> None:
        """Look at everything again."""
        ...


class Attempt:
    """One request at one endpoint, from `Health.admit` to `ended`, which must be called exactly once."""

    __slots__ = ("_keeper", "_member", "_tick", "over", "started", "succeeded")

    def __init__(self, keeper: Keeper, member: Member, started: float) -> None:
        self._keeper = keeper
        self._member = member
        self._tick = -1
        self.started = started
        self.succeeded = False
        self.over = False

    def connected(self) -> None:
        """The connection stands. Ends that an endpoint counts as unreachable, not its ejection."""
        if self._member.outlier.unreachable:
            self._member.outlier.unreachable = False
            self._keeper.review()

    def content(self) -> None:
        """The first byte of content of a good response came: that is a success, however long it goes on."""
        if not self.succeeded and not self.over:
            self.succeeded = True
            self._tick = self._keeper.succeeded(self._member, self)

    def ended(self, verdict: Verdict) -> None:
        """The attempt is over. A second call does nothing."""
        if self.over:
            return
        if verdict.kind is Kind.SUCCESS:
            self.content()
        self.over = True
        if self.succeeded and verdict.kind in {Kind.FAILURE, Kind.REFUSED}:
            self._member.outlier.share.recant(self._tick)
        self._keeper.ended(self._member, self, verdict)
