"""Builders of the nouns, with everything that a test does not care about filled in."""

from lb_core.types import Choice, Endpoint, Request, Snapshot


class Clock:
    """Stands still unless `now` is set, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def endpoint(
    name: str = "a", *, weight: float = 1.0, max_in_flight: int | None = None, models: tuple[str, ...] = ()
) -> Endpoint:
    return Endpoint(name, "http", "127.0.0.1", 8000, weight, max_in_flight, models)


def endpoints(count: int) -> tuple[Endpoint, ...]:
    return tuple(endpoint(f"e{number}") for number in range(count))


def request(*, number: int = 0, tie: float = 0.0, session: str | None = None) -> Request:
    return Request(f"r-{number}", tie, "api.test", "/v1/chat/completions", session=session)


def snapshot(
    *members: Endpoint, in_flight: dict[str, int] | None = None, sequence: int = 0, cluster: str = "c"
) -> Snapshot:
    return Snapshot(cluster, tuple(Choice(member) for member in members), in_flight or {}, sequence)
