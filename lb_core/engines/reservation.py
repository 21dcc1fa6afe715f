"""A request counted where it will probably go, while the store that places it is still being asked."""

from types import TracebackType
from typing import Self

from lb_core.engines.board import Board
from lb_core.engines.shares import RecentChoices


class Reservation:
    """One request on the board and among the route's latest choices, at no or at one endpoint.

    Requests that come at once would all be decided alike if each were counted only when the store has
    answered. A context manager: what is counted is taken back when the body raises.
    """

    def __init__(self, board: Board, recent: RecentChoices, lease_id: str) -> None:
        self._board = board
        self._recent = recent
        self._lease_id = lease_id
        self._at: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.move(None)

    def move(self, endpoint: str | None) -> None:
        """Count it at this endpoint from now on, and no longer where it was; None is nowhere."""
        before, self._at = self._at, endpoint
        if before is not None:
            self._board.finished(before, self._lease_id)
        if endpoint is not None:
            self._board.placed(endpoint, self._lease_id)  # anew: a page asked for meanwhile has it not
        if before != endpoint:
            if before is not None:
                self._recent.withdraw(before)
            if endpoint is not None:
                self._recent.note(endpoint)
