"""Visits every endpoint's page in turn, on threads of its own, and hands what it read to the event loop.

One thread keeps the time: it starts visits when they are due and ends those that take too long. The visits
run on a bounded crew. An endpoint whose last visit failed is visited by a few threads set apart, so that
however many hang, those that answer are visited on time.
"""

import asyncio
import heapq
import itertools
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from lb_core.engines.crew import Crew, Shortage
from lb_core.engines.dialects import DIALECTS
from lb_core.engines.fetch import Fetcher, PageError, check_request
from lb_core.engines.model import Scrape
from lb_core.engines.reading import Reader

logger = logging.getLogger(__name__)

_WORKERS = 12
_WORKERS_FOR_FAILED = 4
_JITTER = 0.1
"""Visits are this part of the interval early or late, so that they do not fall in step."""
_AWAY_SHARE = 1 / 10
_LONGEST_PAUSE_S = 30.0
"""A page that nobody needs and that was not there for a while is next visited after this share of the while,
at most after so long: an engine that starts again is noticed soon, an API without a page is left in peace."""
_TICK_S = 0.05
"""How late a visit that takes too long may be ended."""
_AGAIN_S = 1.0
_CLOSE_S = 1.0
_JOIN_S = 1.5


@dataclass(frozen=True, slots=True)
class Target:
    """One page to visit. `endpoint` is the endpoint's name, which `cluster` may share with others."""

    endpoint: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    interval_s: float = 1.0
    timeout_s: float = 1.0
    """Over all: connection, headers and body."""
    dialect: str | None = None
    """A key of `DIALECTS`; None chooses by what the page has."""
    metrics: tuple[str, ...] = ()
    """Metrics to read beside, by their names on the page; see `Reader`."""
    eager: bool = True
    """Visit it at every interval even if there has been no page for long."""
    address: str | None = None
    """Where to connect to in place of the URL's host; TLS and the Host header keep that."""
    tls: ssl.SSLContext | None = None
    """What checks the certificate of an https page; None trusts what is trusted by default."""
    cluster: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for what could never be asked for; repeats no header."""
        if self.dialect is not None and self.dialect not in DIALECTS:
            raise ValueError(f"unknown dialect {self.dialect!r}; valid: {', '.join(DIALECTS)}")
        check_request(self.url, self.headers)


class Scraper:
    """`deliver` gets every finished `Scrape`, on the event loop that `start` was given.

    `clock` is the balancer's. All methods belong to the event loop's thread.
    """

    def __init__(
        self, deliver: Callable[[Scrape], None], *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._deliver = deliver
        self._clock = clock
        self._targets: tuple[Target, ...] = ()
        self._changed = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._short = Shortage("pages are not visited")

    def set_targets(self, targets: Iterable[Target]) -> None:
        """Visit these from now on. Those that are as they were keep their connection and their rates."""
        self._targets = tuple(targets)
        self._changed.set()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, soon and not all at once. A second call does nothing."""
        if self._thread is None:
            self._stopping = False
            thread = threading.Thread(target=self._run, args=(loop,), name="scraper", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._short.begins()
                loop.call_later(_AGAIN_S, self._start_again, loop)
                return
            self._short.ends()
            self._thread = thread

    def stop(self) -> None:
        """End all visits and the threads; returns within 1.5 s. Nothing is delivered afterwards."""
        self._stopping = True
        self._changed.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None

    def _start_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._stopping:
            self.start(loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        rounds = _Rounds(self._clock, lambda scrape: self._hand_over(loop, scrape))
        rounds.replace(self._targets)
        try:
            while not self._stopping:
                self._changed.wait(rounds.turn())
                if self._changed.is_set():
                    self._changed.clear()
                    rounds.replace(self._targets)
        finally:
            rounds.close()

    def _hand_over(self, loop: asyncio.AbstractEventLoop, scrape: Scrape) -> None:
        if self._stopping:
            return
        try:
            loop.call_soon_threadsafe(self._arrived, scrape)
        except RuntimeError:  # the loop is closed: nobody wants it any more
            self._stopping = True

    def _arrived(self, scrape: Scrape) -> None:
        if not self._stopping:
            self._deliver(scrape)


class _Visitor:
    """Visits one target; one visit at a time."""

    def __init__(self, target: Target, clock: Callable[[], float]) -> None:
        self.target = target
        self.busy = False
        self.failed = False
        self.began: float | None = None
        """When the visit that is going on began; None while it waits for a thread."""
        self.retired = False
        self._good_at = clock()
        self._clock = clock
        self._reader = Reader(dialect=target.dialect, targets=target.metrics)
        self._fetcher = Fetcher(
            target.url,
            headers=target.headers,
            address=target.address,
            timeout_s=target.timeout_s,
            tls=target.tls,
        )

    def visit(self) -> Scrape | None:
        """Runs on a thread of a crew. None when it is not wanted any more."""
        if self.retired:
            self._fetcher.close()
            return None
        at = self.began = self._clock()
        metrics, error = None, ""
        try:
            metrics = self._reader.read(self._fetcher.fetch(), at)
            if metrics is None:
                error = "a page without any metric that is known"
        except PageError as failure:
            error = str(failure)
        self.began = None
        self.failed = metrics is None
        if metrics is not None:
            self._good_at = at
        if self.failed or self.retired:
            self._fetcher.close()
        took_s = self._clock() - at
        return Scrape(self.target.endpoint, at, took_s, metrics, error, self.target.cluster)

    def pause_s(self, now: float) -> float:
        """How long after a visit the next is due, more or less."""
        interval_s = self.target.interval_s
        if self.target.eager or not self.failed:
            return interval_s
        return max(interval_s, min((now - self._good_at) * _AWAY_SHARE, _LONGEST_PAUSE_S))

    def hurry(self, now: float) -> None:
        """End a visit that has had its time, or that nobody waits for. May have to be said again."""
        if (began := self.began) is not None and (self.retired or now - began > self.target.timeout_s):
            self._fetcher.abort()

    def retire(self) -> None:
        """It is not wanted any more."""
        self.retired = True
        if not self.busy:
            self._fetcher.close()


class _Rounds:
    """Whose turn it is when; belongs to the thread that keeps the time."""

    def __init__(self, clock: Callable[[], float], done: Callable[[Scrape], None]) -> None:
        self._clock = clock
        self._done = done
        self._visitors: dict[tuple[str, str], _Visitor] = {}
        self._leaving: list[_Visitor] = []
        self._due: list[tuple[float, int, _Visitor]] = []
        self._numbers = itertools.count()
        self._crew = Crew(_WORKERS, "scraper")
        self._crew_for_failed = Crew(_WORKERS_FOR_FAILED, "scraper-failed")
        self._short = Shortage("some pages are not visited")

    def replace(self, targets: Iterable[Target]) -> None:
        """Visit these from now on."""
        before, self._visitors = self._visitors, {}
        for target in targets:
            key = (target.cluster, target.endpoint)
            visitor = before.pop(key, None)
            if visitor is None or visitor.target != target:
                if visitor is not None:
                    self._retire(visitor)
                visitor = _Visitor(target, self._clock)
                self._plan(visitor, self._clock() + random.uniform(0, target.interval_s / 4))
            self._visitors[key] = visitor
        for visitor in before.values():
            self._retire(visitor)

    def turn(self) -> float | None:
        """Begin what is due, end what takes too long; how long to wait for the next turn."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            due, _, visitor = heapq.heappop(self._due)
            if visitor.retired:
                continue
            if not visitor.busy:
                self._begin(visitor)
            interval = visitor.pause_s(now)
            early = random.uniform(1 - _JITTER, 1 + _JITTER) * interval
            self._plan(visitor, max(due + early, now + interval / 2))  # no rush after a pause of the machine
        until_due = max(self._due[0][0] - self._clock(), 0) if self._due else None
        if self._hurry():
            return _TICK_S if until_due is None else min(until_due, _TICK_S)
        return until_due

    def close(self) -> None:
        """End everything, as far as it can be ended within a second."""
        self.replace(())  # visits that wait for a thread end as soon as they begin
        self._crew.close()
        self._crew_for_failed.close()
        until = self._clock() + _CLOSE_S
        while self._hurry() and self._clock() < until:
            time.sleep(_CLOSE_S / 100)

    def _hurry(self) -> bool:
        """End visits that take too long; whether any is going on."""
        self._leaving = [visitor for visitor in self._leaving if visitor.busy]
        busy = [visitor for visitor in (*self._visitors.values(), *self._leaving) if visitor.busy]
        now = self._clock()
        for visitor in busy:
            visitor.hurry(now)
        return bool(busy)

    def _retire(self, visitor: _Visitor) -> None:
        visitor.retire()
        self._leaving.append(visitor)

    def _plan(self, visitor: _Visitor, due: float) -> None:
        heapq.heappush(self._due, (due, next(self._numbers), visitor))

    def _begin(self, visitor: _Visitor) -> None:
        visitor.busy = True
        crew = self._crew_for_failed if visitor.failed else self._crew
        try:
            crew.submit(partial(self._visit, visitor))
        except RuntimeError:  # tried again when its turn comes
            visitor.busy = False
            self._short.begins()
        else:
            self._short.ends()

    def _visit(self, visitor: _Visitor) -> None:
        """Runs on a thread of a crew."""
        scrape = None
        try:
            scrape = visitor.visit()
        except Exception:  # as `tasks.guarded`, which is out of reach here
            visitor.failed = True
            logger.exception("The scraper failed; this is a fault of the balancer.")
        visitor.busy = False
        if scrape is not None and not visitor.retired:
            self._done(scrape)
