"""The service that is least busy or answers fastest."""

from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from lb_core.policies.headers import header_name
from lb_core.services import Service, ServiceChoice, ServiceDecision, Services
from lb_core.types import Request

_FRAMING = frozenset(
    {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
_OTHER_DIGITS = 611
"""Ties among services come from other digits of `Request.tie` than ties among their endpoints, or some
endpoints would never win one. One more than a Fibonacci number keeps multiples of the golden ratio even."""


def _own_header(name: str) -> str:
    if name.lower() in _FRAMING:
        raise ValueError("HTTP itself needs this header; expected one of its own")
    return header_name(name)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a service is listed twice")
    return names


@dataclass(frozen=True, slots=True)
class ClusterMetrics:
    """Chooses among clusters by what this balancer saw of them.

    `mode`: LeastBusy takes the service with the fewest requests in flight, LeastTotalLatency that with the
    lowest mean time of whole answers, LeastFirstTokenLatency that with the lowest mean time to the first
    event with content. A failure counts as twice the largest mean. A service without samples gets one
    request that finds out; until that returns the known ones are used, and where none is known the least
    busy. A service all of whose samples are failures comes after those that nothing is known of.
    `service_list`: the clusters. `rate_limit`: a service that had this share of the last 100 choices is
    passed over while another can take the request; 1 is no limit. `cluster_header`: tells the service its
    name. `queue_size`: over how many of its latest answers a service's mean is taken. `sample_ttl`: seconds
    after which an answer is forgotten.

    Reasons: least_busy, least_total_latency, least_first_token_latency, probe, no_samples, failing and
    rate_limited. Ties are broken uniformly by `Request.tie`.
    """

    name: ClassVar[str] = "cluster_metrics"
    lb_type: ClassVar[str] = "cluster"
    signals: ClassVar[frozenset[str]] = frozenset()

    mode: Literal["LeastBusy", "LeastTotalLatency", "LeastFirstTokenLatency"]
    service_list: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_unique)]
    rate_limit: Annotated[float, Field(gt=0, le=1)] = 1.0
    cluster_header: Annotated[str, AfterValidator(_own_header)] = "x-envoy-target-cluster"
    queue_size: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    sample_ttl: Annotated[float, Field(gt=0)] = 60.0

    def choose(self, request: Request, services: Services) -> ServiceDecision:
        """Rank all services for this request; never raises, empty only without services."""
        penalty_s = 2 * max((_mean(self.mode, service) or 0.0 for service in services), default=0.0)
        ranked = sorted((self._ranked(service, penalty_s) for service in services), key=_rank)
        point = request.tie * _OTHER_DIGITS % 1
        choices: list[ServiceChoice] = []
        for _, group in groupby(ranked, key=_rank):
            equals = [choice for *_, choice in group]
            first = int(point * len(equals))
            choices += equals[first:] + equals[:first]
        return ServiceDecision(self.name, tuple(choices))

    def _ranked(self, service: Service, penalty_s: float) -> tuple[float, int, float, ServiceChoice]:
        """Its share if that is too much, its group, its place in the group, and what is said about it."""
        group, place, reason, detail, score = self._judged(service, penalty_s)
        share = -1.0
        if self.rate_limit < 1 and service.share >= self.rate_limit:
            share = service.share
            reason, detail = "rate_limited", f"{share:.2f} of the last choices"
        return share, group, place, ServiceChoice(service.name, reason, detail, score)

    def _judged(self, service: Service, penalty_s: float) -> tuple[int, float, str, str, float | None]:
        busy = service.in_flight
        if self.mode == "LeastBusy":
            return 1, busy, "least_busy", f"{busy} in flight", busy
        if service.probe_due:
            return 0, busy, "probe", "no samples", None
        mean_s, failed = _mean(self.mode, service), service.punished
        count = service.samples + failed
        if mean_s is not None:
            mean_s = (mean_s * service.samples + penalty_s * failed) / count
            return 1, mean_s, _REASONS[self.mode], f"{mean_s:.3f} s over {count}, {failed} failed", mean_s
        if failed:
            return 3, busy, "failing", f"{failed} of {count} failed", penalty_s or None
        return 2, busy, "no_samples", f"{busy} in flight, one finds out", None


_REASONS = {
    "LeastTotalLatency": "least_total_latency",
    "LeastFirstTokenLatency": "least_first_token_latency",
}


def _mean(mode: str, service: Service) -> float | None:
    return service.mean_first_s if mode == "LeastFirstTokenLatency" else service.mean_total_s


def _rank(ranked: tuple[float, int, float, ServiceChoice]) -> tuple[float, int, float]:
    return ranked[:3]
