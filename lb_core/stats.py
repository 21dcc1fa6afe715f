"""The balancer's own numbers, as Prometheus metrics."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Set

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from lb_core.types import Outcome, Placement

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_SHOWN_S = 300.0
"""How long an endpoint is shown after it left, so that its last counts are fetched."""

type Readings = Callable[[], Iterable[tuple[list[str], float]]]
"""Label values and what is read for them."""


class Stats:
    """Counters and histograms of one balancer, in a registry of their own.

    Labels are names of the configuration and of endpoints. Discovery finds ever new ones of these, so their
    number is bounded only if `keep` is told from time to time.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ai_lb_requests",
            "Requests placed and finished.",
            ["route", "endpoint", "ending"],
            registry=self.registry,
        )
        self._refused = Counter("ai_lb_refused", "Requests not placed.", ["code"], registry=self.registry)
        self._faults = Counter("ai_lb_hook_errors", "Faults of the addon itself.", registry=self.registry)
        self._health = Counter(
            "ai_lb_health_changes",
            "Endpoints that came into a state; an empty endpoint is the cluster.",
            ["cluster", "endpoint", "state"],
            registry=self.registry,
        )
        self._ttft = Histogram(
            "ai_lb_ttft_seconds",
            "From the request to the first event with content.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._duration = Histogram(
            "ai_lb_duration_seconds",
            "From the request to the end of the response.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._series: defaultdict[str, set[tuple[MetricWrapperBase, tuple[str, ...]]]] = defaultdict(set)
        """By endpoint the series with its name among their labels."""
        self._gone_at: dict[str, float] = {}

    def keep(self, endpoints: Set[str], now: float) -> None:
        """Show no more what left some minutes ago: the endpoints that are not among these."""
        gone = self._series.keys() - endpoints
        self._gone_at = {name: self._gone_at.get(name, now) for name in gone}
        for name in [name for name, at in self._gone_at.items() if now - at >= _SHOWN_S]:
            for metric, labels in self._series.pop(name):
                metric.remove(*labels)

    def watch(self, name: str, text: str, labels: list[str], read: Readings) -> None:
        """Expose gauges that are read anew whenever the metrics are fetched, in another thread."""
        self.registry.register(_Gauges(name, text, labels, read))

    def finished(self, placement: Placement, outcome: Outcome) -> None:
        """Count one request that was placed."""
        endpoint = placement.endpoint.name
        self._of(endpoint, self._requests, placement.route, endpoint, outcome.ending.value).inc()
        if outcome.ttft_s is not None:
            self._of(endpoint, self._ttft, endpoint).observe(outcome.ttft_s)
        if outcome.duration_s is not None:
            self._of(endpoint, self._duration, endpoint).observe(outcome.duration_s)

    def health_changed(self, cluster: str, endpoint: str, state: str) -> None:
        """Count one change of health."""
        if endpoint:
            self._of(endpoint, self._health, cluster, endpoint, state).inc()
        else:
            self._health.labels(cluster, endpoint, state).inc()

    def refused(self, code: str) -> None:
        """Count one request that could not be placed."""
        self._refused.labels(code).inc()

    def hook_failed(self) -> None:
        """Count one fault of the addon."""
        self._faults.inc()

    def _of[M: MetricWrapperBase](self, endpoint: str, metric: M, *labels: str) -> M:
        """The series of an endpoint, which ends when that has left."""
        self._series[endpoint].add((metric, labels))
        return metric.labels(*labels)


class _Gauges(Collector):
    """Gauges that are read when the metrics are fetched."""

    def __init__(self, name: str, text: str, labels: list[str], read: Readings) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        gauge = GaugeMetricFamily(self._name, self._text, labels=self._labels)
        for values, number in self._read():
            gauge.add_metric(values, number)
        yield gauge
