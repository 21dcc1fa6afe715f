"""How the latest choices of a route were shared out."""

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType

WINDOW = 100
"""Choices that a share is taken of, as in Higress."""


class RecentChoices:
    """The endpoints chosen last, counted. `counts` is a live view; an endpoint that is not in it has none."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._order: deque[str] = deque()
        self._counts: dict[str, int] = {}
        self.counts: Mapping[str, int] = MappingProxyType(self._counts)

    def note(self, endpoint: str) -> None:
        """One more choice; the oldest beyond the window is forgotten."""
        self._order.append(endpoint)
        self._counts[endpoint] = self._counts.get(endpoint, 0) + 1
        if len(self._order) > self._window:
            self._forget(self._order.popleft())

    def withdraw(self, endpoint: str) -> None:
        """Take the latest choice of it back, if it is not forgotten yet."""
        for index in range(len(self._order) - 1, -1, -1):
            if self._order[index] == endpoint:
                del self._order[index]
                self._forget(endpoint)
                return

    def _forget(self, endpoint: str) -> None:
        self._counts[endpoint] -= 1
        if not self._counts[endpoint]:
            del self._counts[endpoint]
