"""A bounded number of threads that share out work, and that the end of the process does not wait for."""

import logging
import queue
import threading
from collections.abc import Callable

type Work = Callable[[], None]
"""Must not raise: that would end its thread."""

logger = logging.getLogger(__name__)


class Crew:
    """At most `most` threads, begun as they are needed.

    They are daemons, unlike those of a ThreadPoolExecutor, for which the interpreter waits at its end: a
    resolver may hang for half a minute. `submit` and `close` belong to one thread.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = 0
        self._threads = 0

    def submit(self, work: Work) -> None:
        """Have it done, later if all are busy. Raises RuntimeError where no thread can be had."""
        self._work.put(work)
        with self._lock:
            self._unfinished += 1
            wanted = self._threads < min(self._unfinished, self._most)
        if not wanted:
            return
        try:
            threading.Thread(target=self._run, name=f"{self._name}_{self._threads}", daemon=True).start()
            self._threads += 1
        except RuntimeError:
            if not self._threads:  # otherwise one of those that there are does it
                self._work.get_nowait()
                self._unfinished -= 1
                raise

    def close(self) -> None:
        """End the threads, each when it finds no more work."""
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                self._unfinished -= 1


class Shortage:
    """Says once when threads cannot be started and once when they can again."""

    def __init__(self, consequence: str) -> None:
        self._consequence = consequence
        self._lasts = False

    def begins(self) -> None:
        """None could be started."""
        if not self._lasts:
            self._lasts = True
            logger.error("No thread can be started: %s until one can be.", self._consequence)

    def ends(self) -> None:
        """One could be."""
        if self._lasts:
            self._lasts = False
            logger.info("Threads can be started again.")
