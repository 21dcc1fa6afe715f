"""What really happened at an engine: the numbers that a balancer's own are checked against."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

_MAX_ABORTS = 200
_MAX_PATHS = 32


@dataclass(frozen=True, slots=True)
class Abort:
    """A client that left before its answer was complete; `at` in unix seconds."""

    at: float
    path: str
    request_id: str
    open_s: float


class Truth:
    """total = open + finished + aborted + cut, at any time. Every request to /v1/* counts.

    `finished` were answered in full (errors too), of `aborted` the client left, `cut` were ended by a fault.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.open = 0
        self.reset()

    def reset(self) -> None:
        """Zero the totals; what is open now stays and is the new peak and total."""
        self.total = self.open
        self.peak = self.open
        self.finished = 0
        self.aborted = 0
        self.cut = 0
        self.by_path: dict[str, int] = {}
        self.aborts: deque[Abort] = deque(maxlen=_MAX_ABORTS)
        """The latest, oldest first."""

    def visit(self, path: str, request_id: str) -> Visit:
        """Open one request; the `with` block is its life."""
        if path not in self.by_path and len(self.by_path) >= _MAX_PATHS:
            path = "other"
        self.by_path[path] = self.by_path.get(path, 0) + 1
        self.open += 1
        self.total += 1
        self.peak = max(self.peak, self.open)
        return Visit(self, path, request_id)

    def as_json(self) -> dict[str, Any]:
        return {
            "open": self.open,
            "total": self.total,
            "peak": self.peak,
            "finished": self.finished,
            "aborted": self.aborted,
            "cut": self.cut,
            "by_path": self.by_path,
            "last_abort_at": self.aborts[-1].at if self.aborts else None,
            "aborts": [asdict(abort) for abort in self.aborts],
        }


class Visit:
    """One request at the engine. Leaving the block unanswered means that its client left."""

    def __init__(self, truth: Truth, path: str, request_id: str) -> None:
        self._truth = truth
        self._path = path
        self._request_id = request_id
        self._since = truth.clock()
        self._open = True

    def finish(self) -> None:
        """The answer is complete: called before its last bytes, so that who has read them finds it closed."""
        if self._close():
            self._truth.finished += 1

    def cut(self) -> None:
        """A fault ends it."""
        if self._close():
            self._truth.cut += 1

    def _close(self) -> bool:
        was_open, self._open = self._open, False
        if was_open:
            self._truth.open -= 1
        return was_open

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._close():
            return
        if error is None:
            self._truth.finished += 1
            return
        self._truth.aborted += 1
        open_s = self._truth.clock() - self._since
        self._truth.aborts.append(Abort(time.time(), self._path, self._request_id, open_s))
