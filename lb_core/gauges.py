"""What the balancer's metrics show of its parts as they are now."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from lb_core.cluster import Cluster
from lb_core.stats import Stats
from lb_core.stores.redis import RedisStore

type Clusters = Callable[[], Mapping[str, Cluster]]


def with_ready(pages: WSGIApplication, ready: Callable[[], bool]) -> WSGIApplication:
    """`pages`, and `/ready` beside them: 200 while the balancer takes requests, else 503."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/ready":
            return pages(environ, start_response)
        status, text = ("200 OK", b"ready\n") if ready() else ("503 Service Unavailable", b"not ready\n")
        start_response(status, [("Content-Type", "text/plain")])
        return [text]

    return app


def expose(stats: Stats, clusters: Clusters) -> None:
    """Register the gauges. They are read in another thread, so each reads a copy."""

    def in_flight() -> Iterator[tuple[list[str], float]]:
        for name, cluster in dict(clusters()).items():
            counts = dict(cluster.store.in_flight)
            for endpoint in cluster.endpoints:
                yield [name, endpoint.name], counts.get(endpoint.name, 0)

    def states() -> Iterator[tuple[list[str], float]]:
        for name, cluster in dict(clusters()).items():
            for endpoint, state in dict(cluster.health.states()).items():
                yield [name, endpoint, state], 1

    def missing() -> Iterator[tuple[list[str], float]]:
        for name, cluster in dict(clusters()).items():
            for endpoint, signals in dict(cluster.board.missing()).items():
                for signal in signals:
                    yield [name, endpoint, signal], 1

    def shared() -> Iterator[tuple[list[str], float]]:
        for name, cluster in dict(clusters()).items():
            if isinstance(cluster.store, RedisStore):
                yield [name], float(cluster.store.stats.shared)

    def store_events() -> Iterator[tuple[list[str], float]]:
        for name, cluster in dict(clusters()).items():
            if isinstance(cluster.store, RedisStore):
                stats = cluster.store.stats
                for event in ("errors", "fallbacks", "resyncs", "reaped", "fsck_fixed"):
                    yield [name, event], getattr(stats, event)

    stats.watch("ai_lb_in_flight", "Requests placed and not finished.", ["cluster", "endpoint"], in_flight)
    stats.watch(
        "ai_lb_endpoint_state",
        "1 for the state that an endpoint is in now.",
        ["cluster", "endpoint", "state"],
        states,
    )
    stats.watch(
        "ai_lb_signal_missing",
        "Signals that an engine does not report; page is all.",
        ["cluster", "endpoint", "signal"],
        missing,
    )
    stats.watch("ai_lb_store_shared", "1 while counts are shared through Redis.", ["cluster"], shared)
    stats.watch(
        "ai_lb_store_events",
        "What happened to the shared counts since the start; fsck_fixed must stay 0.",
        ["cluster", "event"],
        store_events,
    )


def present(clusters: Iterable[Cluster]) -> set[str]:
    """The names of endpoints that there are, and of those that left and still have requests."""
    found: set[str] = set()
    for cluster in clusters:
        found.update(endpoint.name for endpoint in cluster.endpoints)
        found.update(cluster.store.in_flight)
    return found
