"""What one route knows of the services that it chooses among: their load, shares and latencies.

A service is a cluster, seen from the route (Higress's word). A policy of the type `cluster` looks at a
`view`; whoever carries its choice out does so inside `placing` and tells the end by `finished`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from lb_core.error_words import status_of
from lb_core.types import Ending, Outcome, ServiceChoice, ServiceDecision

__all__ = ["Service", "ServiceBoard", "ServiceChoice", "ServiceDecision", "Services"]

RECENT_CHOICES = 100
"""Over how many choices of the route a service's share is taken; Higress does so for endpoints."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service as of now."""

    name: str
    in_flight: int = 0
    share: float = 0.0
    """Its part of the route's last `RECENT_CHOICES` choices, from 0 to 1."""
    samples: int = 0
    """Good answers that the means are taken over."""
    punished: int = 0
    """Failures beside them; a policy says what each counts as."""
    mean_total_s: float | None = None
    """From the request's arrival to the end of the answer; None without samples."""
    mean_first_s: float | None = None
    """From the request's arrival to the first event with content; the whole answer where it was no stream."""
    probe_due: bool = False
    """Nothing is known of it, and nobody is finding out: the next request should."""


type Services = tuple[Service, ...]
"""The services of one route, in the order of its `service_list`."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """An answer's times in whole nanoseconds, so that sums stay exact; a punished one has none."""

    at: float
    total_ns: int = 0
    first_ns: int = 0
    punished: bool = False


@dataclass(slots=True)
class _Record:
    """What is kept of one service; the sums are those of `samples`."""

    samples: deque[_Sample] = field(default_factory=deque)
    total_ns: int = 0
    first_ns: int = 0
    punished: int = 0
    chosen: int = 0
    """Its part of the recent choices."""
    placing: int = 0
    """Chosen, and not yet in the store's count."""
    probe: str | None = None
    """The request that is finding out about it."""
    probed_at: float | None = None
    """When the last probe left; None when a sample came since."""
    heard: int = 0
    """The number of the last request that told something of it, or that was to."""

    def add(self, sample: _Sample, *, keep: int) -> None:
        if len(self.samples) >= keep:
            self.drop_oldest()
        self.samples.append(sample)
        self._count(sample, 1)

    def drop_oldest(self) -> None:
        self._count(self.samples.popleft(), -1)

    def _count(self, sample: _Sample, by: int) -> None:
        self.total_ns += by * sample.total_ns
        self.first_ns += by * sample.first_ns
        self.punished += by * sample.punished


class ServiceBoard:
    """Remembers the latest `queue_size` samples of each service, and the route's latest choices.

    Samples are forgotten after `sample_ttl_s`, so that a service that was slow or failing is tried again.
    Times that are not failures are forgotten earlier, when so many requests finished elsewhere that one
    request in `queue_size` goes to finding out; thus a change shows within `queue_size` requests for two
    services, and the price is the same for many. Failures wait the full time: trying costs an answer.

    One request at a time finds out about a service of which nothing is known. When it brought no sample,
    the next one follows as if it had; when it does not return, after `sample_ttl_s`.

    Memory is bounded by the names and `queue_size`; each event costs amortised constant time for each
    service. `clock` gives seconds.
    """

    def __init__(
        self, names: Iterable[str], *, queue_size: int, sample_ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._records = {name: _Record() for name in names}
        self._queue_size = queue_size
        self._sample_ttl_s = sample_ttl_s
        self._clock = clock
        self._recent: deque[_Record] = deque()
        self._finished = 0
        self._outdated_after = queue_size * max(1, len(self._records) - 1)

    def view(self, in_flight: Mapping[str, int]) -> Services:
        """The services as of now; `in_flight` are the requests that their stores count, absent is 0."""
        now = self._clock()
        recent = len(self._recent) or 1
        return tuple(
            self._service(name, record, in_flight.get(name, 0), recent, now)
            for name, record in self._records.items()
        )

    @contextmanager
    def placing(self, name: str, request_id: str) -> Iterator[None]:
        """Count a choice while a place for it is looked for; take it back when the body raises.

        Enter it without awaiting anything since `view`, or requests that come at once choose alike.
        Raises KeyError for a name that is no service of this route.
        """
        record = self._records[name]
        is_probe = self._probe_due(record, now := self._clock())
        if is_probe:
            record.probe, record.probed_at, record.heard = request_id, now, self._finished
        self._choose(record)
        record.placing += 1
        placed = False
        try:
            yield
            placed = True
        finally:
            record.placing -= 1
            if not placed:
                self._withdraw(record)
                if is_probe and record.probe == request_id:
                    record.probe = record.probed_at = None

    def finished(self, name: str, request_id: str, outcome: Outcome) -> None:
        """Learn from the end of a request that was placed at a service; other names are ignored.

        A good answer is a sample. A 5xx, a connection that failed and a stream that reports a 5xx are
        punished. All else says nothing about the service: what the client asked was wrong, or it left.
        """
        record = self._records.get(name)
        if record is None:
            return
        self._finished += 1
        if record.probe == request_id:
            record.probe = None
            record.heard = self._finished
        sample = _sample(outcome, self._clock())
        if sample is not None:
            record.add(sample, keep=self._queue_size)
            record.heard = self._finished
            record.probe = record.probed_at = None

    def _service(self, name: str, record: _Record, in_flight: int, recent: int, now: float) -> Service:
        self._forget(record, now)
        good = len(record.samples) - record.punished
        return Service(
            name,
            in_flight + record.placing,
            record.chosen / recent,
            good,
            record.punished,
            record.total_ns / good / 1e9 if good else None,
            record.first_ns / good / 1e9 if good else None,
            self._probe_due(record, now),
        )

    def _forget(self, record: _Record, now: float) -> None:
        samples = record.samples
        while samples and now - samples[0].at >= self._sample_ttl_s:
            record.drop_oldest()
        if samples and not samples[-1].punished and self._is_outdated(record):
            while samples:
                record.drop_oldest()

    def _probe_due(self, record: _Record, now: float) -> bool:
        if record.samples:
            return False
        if record.probed_at is None or now - record.probed_at >= self._sample_ttl_s:
            return True
        return record.probe is None and self._is_outdated(record)

    def _is_outdated(self, record: _Record) -> bool:
        return self._finished - record.heard >= self._outdated_after

    def _choose(self, record: _Record) -> None:
        if len(self._recent) >= RECENT_CHOICES:
            self._recent.popleft().chosen -= 1
        self._recent.append(record)
        record.chosen += 1

    def _withdraw(self, record: _Record) -> None:
        for index in range(len(self._recent) - 1, -1, -1):
            if self._recent[index] is record:
                del self._recent[index]
                record.chosen -= 1
                return


def _sample(outcome: Outcome, now: float) -> _Sample | None:
    if outcome.ending in {Ending.CLIENT_LEFT, Ending.TIMED_OUT, Ending.ABANDONED}:
        return None
    status = outcome.status
    if status is not None and 400 <= status < 500:
        return None  # also when the connection broke afterwards: an answer may come before all was read
    if outcome.ending is Ending.UPSTREAM_FAILED or (status is not None and status >= 500):
        return _Sample(now, punished=True)
    if outcome.error is not None:
        # vLLM answers 200 and then an error event when its queue is full; fast failures are not fast.
        return _Sample(now, punished=True) if status_of(outcome.error) >= 500 else None
    if status is None or not 200 <= status < 300:
        return None
    total_s = outcome.duration_s
    first_s = total_s if outcome.ttft_s is None else outcome.ttft_s
    if total_s is None or first_s is None or not (0 <= first_s < math.inf and 0 <= total_s < math.inf):
        return None
    return _Sample(now, round(total_s * 1e9), round(first_s * 1e9))
