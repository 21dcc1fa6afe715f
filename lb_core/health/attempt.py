"""One request at one endpoint, as its health sees it."""

import enum
from typing import Protocol

from lb_core.health.member import Member
from lb_core.health.verdict import Kind, Verdict


class Work(enum.Enum):
    """What a request shows of an engine."""

    OTHER = enum.auto()
    """Nothing of its work: a front end answers it also while the engine hangs."""
    ANSWER = enum.auto()
    """An answer in one piece, which may honestly take however long."""
    STREAM = enum.auto()
    """A first token that is due within minutes, and then others."""


class Keeper(Protocol):
    """Where attempts report."""

    def succeeded(self, member: Member, attempt: "Attempt") -> int:
        """Count a success; gives what `FailureShare.recant` takes."""
        ...

    def alive(self, member: Member) -> None:
        """The engine works."""
        ...

    def ended(self, member: Member, attempt: "Attempt", verdict: Verdict) -> None:
        """Count the end."""
        ...

    def review(self) -> None:
        """Look at everything again."""
        ...


class Attempt:
    """One request at one endpoint, from `Health.admit` to `ended`, which must be called exactly once."""

    __slots__ = ("_keeper", "_member", "_tick", "answered", "over", "started", "succeeded", "work")

    def __init__(self, keeper: Keeper, member: Member, started: float, work: Work) -> None:
        self._keeper = keeper
        self._member = member
        self._tick = -1
        self.started = started
        self.work = work
        self.answered = False
        """The engine itself has said something, in good faith."""
        self.succeeded = False
        self.over = False

    def begin(self) -> "Attempt":
        """It is sent; gives itself."""
        if self.work is not Work.OTHER:
            self._member.silence.began(self, self.started, whole=self.work is Work.ANSWER)
        return self

    def connected(self) -> None:
        """The connection stands. Ends that an endpoint counts as unreachable, not its ejection."""
        if self._member.outlier.unreachable:
            self._member.outlier.unreachable = False
            self._keeper.review()

    def content(self) -> None:
        """The first byte of content of a good response came: that is a success, however long it goes on."""
        if self.over:
            return
        if self.work is not Work.OTHER and not self.answered:
            self.answered = True
            self._member.silence.answered(self)
            self._keeper.alive(self._member)
        self._succeed()

    def progressed(self) -> None:
        """More of the stream came."""
        if self.answered and not self.over:
            self._keeper.alive(self._member)

    def _succeed(self) -> None:
        if not self.succeeded:
            self.succeeded = True
            self._tick = self._keeper.succeeded(self._member, self)

    def ended(self, verdict: Verdict) -> None:
        """The attempt is over. A second call does nothing."""
        if self.over:
            return
        if verdict.kind is Kind.SUCCESS:
            self._succeed()
        self.over = True
        if self.work is not Work.OTHER and not self.answered:
            self._member.silence.unanswered(self)
        if self.succeeded and verdict.kind in {Kind.FAILURE, Kind.REFUSED}:
            self._member.outlier.share.recant(self._tick)
        self._keeper.ended(self._member, self, verdict)
