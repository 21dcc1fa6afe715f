"""What is known of the engines now. Lives on the event loop, which is handed finished values."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from lb_core.engines.model import LATE, STALE_AFTER_S, EngineMetrics, Observation, Scrape
from lb_core.engines.watch import Change, Watch

logger = logging.getLogger(__name__)

PAGE = "page"
"""Stands for all signals in `missing`: there is no page."""
_CONSEQUENCES = {
    "waiting": "its queue is judged by the requests that this balancer has in flight there",
    "running": "requests that it has and does not report are not noticed",
    "kv_usage": "its KV cache neither speaks for it nor against it",
}


@dataclass(slots=True)
class _Engine:
    metrics: EngineMetrics | None = None
    watch: Watch = field(default_factory=Watch)
    placed: dict[str, float] = field(default_factory=dict)
    """When each own request in flight was placed, by lease id."""
    since: int = 0
    """How many of `placed` the newest page cannot count."""
    missing: tuple[str, ...] = ()
    error: str = ""
    """Why there was no page when it went missing."""
    hangs: bool = False


class Board:
    """The newest page of each endpoint, own requests since, and the states that follow.

    `clock` is the balancer's and the scraper's. `on_change` hears of every change of an engine's health, as
    (endpoint, change); after RESTARTED and ASLEEP nothing is left of what the engine had cached. `on_step`
    hears of every page by which an engine has done something since the page before, and `on_page` of a page
    that was known and hangs, as (endpoint, True), and of the end of that.

    That an engine sleeps or is stalled holds while the last page to say so is not older than `stale_after_s`:
    pages that fail for a shorter time change nothing, and an engine that shows none gets requests again.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        stale_after_s: float = STALE_AFTER_S,
        on_change: Callable[[str, Change], None] = lambda endpoint, change: None,
        on_step: Callable[[str], None] = lambda endpoint: None,
        on_page: Callable[[str, bool], None] = lambda endpoint, hangs: None,
    ) -> None:
        self._clock = clock
        self.stale_after_s = stale_after_s
        self.on_change = on_change
        self.on_step = on_step
        self.on_page = on_page
        self._needed = True
        self._engines: dict[str, _Engine] = {}

    def take(self, scrape: Scrape) -> None:
        """Take in a finished visit. One that was begun before the newest page is ignored."""
        engine = self._engine(scrape.endpoint)
        metrics = scrape.metrics
        self._tell_hanging(scrape.endpoint, engine, engine.metrics is not None and scrape.error == LATE)
        if metrics is None:
            # A visit that fails now and then has no consequence.
            if engine.metrics is None or self._clock() - engine.metrics.at > self.stale_after_s:
                self._tell_missing(scrape.endpoint, engine, (PAGE,), scrape.error)
            return
        if engine.metrics is not None and metrics.at < engine.metrics.at:
            return
        engine.metrics = metrics
        engine.since = sum(placed > metrics.at for placed in engine.placed.values())
        absent = [signal for signal in _CONSEQUENCES if metrics.dialect and getattr(metrics, signal) is None]
        self._tell_missing(scrape.endpoint, engine, (*absent, *metrics.absent))
        for change in engine.watch.observe(metrics, len(engine.placed) - engine.since):
            self._tell_change(scrape.endpoint, change)
        if engine.watch.stepped:
            self.on_step(scrape.endpoint)

    def placed(self, endpoint: str, lease_id: str) -> None:
        """A request was placed at an endpoint; `finished` must follow."""
        engine = self._engine(endpoint)
        if lease_id not in engine.placed:
            engine.placed[lease_id] = self._clock()
            engine.since += 1

    def finished(self, endpoint: str, lease_id: str) -> None:
        """The request is gone, or was moved to another endpoint. A second call does nothing."""
        engine = self._engines.get(endpoint)
        placed = engine.placed.pop(lease_id, None) if engine else None
        if engine and placed is not None and (engine.metrics is None or placed > engine.metrics.at):
            engine.since -= 1

    def observations(self, endpoints: Iterable[str]) -> dict[str, Observation]:
        """What is known of these endpoints, however old; those without any page yet are not in it."""
        now = self._clock()
        known = self._engines
        return {
            name: Observation(engine.metrics, now - engine.metrics.at, engine.since, self.stale_after_s)
            for name in endpoints
            if (engine := known.get(name)) is not None and engine.metrics is not None
        }

    def tick(self) -> None:
        """Take back the verdicts that are too old. To be called about once a second."""
        self._lapse(self._clock() - self.stale_after_s)

    def forget(self) -> None:
        """Nobody is visited any more: nothing is known of the engines, and no verdict stands."""
        self._lapse(inf)
        for name, engine in self._engines.items():
            self._tell_hanging(name, engine, False)
            engine.metrics, engine.watch, engine.missing = None, Watch(), ()
            engine.since = len(engine.placed)

    def missing(self) -> Mapping[str, tuple[str, ...]]:
        """By endpoint the needed signals that its last visit did not give, `page` for all of them."""
        if not self._needed:
            return {}
        engines = tuple(self._engines.items())  # at one stroke: this is read in the thread of the metrics too
        return {name: missing for name, engine in engines if (missing := engine.missing)}

    def need(self, needed: bool) -> None:
        """Whether any policy looks at what the engines report. What is missing is a fault only then."""
        if needed and not self._needed:
            for name, engine in self._engines.items():
                for signal in engine.missing:
                    _warn_of(signal, name, engine.error)
        self._needed = needed

    def keep(self, endpoints: Iterable[str]) -> None:
        """Forget the engines that the configuration has no longer."""
        kept = set(endpoints)
        for name in [name for name in self._engines if name not in kept]:
            del self._engines[name]

    def _lapse(self, before: float) -> None:
        for name, engine in self._engines.items():
            for change in engine.watch.lapse(before):
                was = Change.ASLEEP if change is Change.AWAKE else Change.STALLED
                logger.info("Endpoint %s: no page says any more that its engine is %s.", name, was)
                self.on_change(name, change)

    def _engine(self, endpoint: str) -> _Engine:
        return self._engines.setdefault(endpoint, _Engine())

    def _tell_missing(
        self, endpoint: str, engine: _Engine, missing: tuple[str, ...], error: str = ""
    ) -> None:
        """Once when a signal goes missing and once when it is back."""
        for signal in missing:
            if signal in engine.missing:
                continue
            if self._needed:
                _warn_of(signal, endpoint, error)
            elif signal == PAGE:
                logger.info("Endpoint %s: no metrics (%s), and no policy that needs them.", endpoint, error)
        before, engine.error = engine.missing, error
        # While there is no page nothing is known of the single signals: they stay as they were told.
        engine.missing = (*(s for s in before if s != PAGE), PAGE) if missing == (PAGE,) else missing
        for signal in before:
            if signal not in engine.missing and (self._needed or signal == PAGE):
                what = "metrics are" if signal == PAGE else f"the metric {signal} is"
                logger.info("Endpoint %s: %s back.", endpoint, what)

    def _tell_hanging(self, endpoint: str, engine: _Engine, hangs: bool) -> None:
        if hangs != engine.hangs:
            engine.hangs = hangs
            self.on_page(endpoint, hangs)

    def _tell_change(self, endpoint: str, change: Change) -> None:
        if change is Change.STALLED:
            logger.warning("Endpoint %s is stalled: it has requests and makes no step.", endpoint)
        else:
            logger.info("Endpoint %s: its engine is %s.", endpoint, change)
        self.on_change(endpoint, change)


def _warn_of(signal: str, endpoint: str, error: str) -> None:
    if signal == PAGE:
        logger.warning(
            "Endpoint %s: no metrics (%s). Others are preferred to it while they have some.", endpoint, error
        )
    else:
        consequence = _CONSEQUENCES.get(signal, "it neither speaks for the endpoint nor against it")
        logger.warning("Endpoint %s: the metric %s is missing; %s.", endpoint, signal, consequence)
