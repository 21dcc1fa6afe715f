"""Every error that this package raises on purpose, as one tree.

AiLbError
├── ConfigError              the configuration cannot be used; lists every problem found
└── RouteError               this request cannot be served; carries what the client is told
    ├── Malformed            400  another server could read the request as another one
    ├── TooLarge             413  the request's body is larger than the balancer takes
    ├── NoRoute              404  no route matches
    ├── ModelNotFound        404  no endpoint of the cluster serves the model
    ├── Saturated            429  every candidate is at its in-flight limit
    ├── NoEndpoint           503  the cluster has no endpoint that may serve it
    ├── Draining             503  the balancer is about to end
    ├── EndpointUnreachable  503  no endpoint that was tried accepts connections
    ├── EndpointBusy         503  the endpoint's queue is full, and no other was left to ask
    ├── EndpointFailed       502  the endpoint gave no valid response
    ├── EndpointTimedOut     504  the endpoint gave none in time
    └── InternalError        500  a fault of the balancer
"""

from dataclasses import dataclass
from typing import ClassVar


class AiLbError(Exception):
    """Base of all errors of this package."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a configuration file.

    `line` counts from 1, None where no line is to blame. `path` is the key path, such as
    `routes[0].lb_config.rate_limit`, "" for the file as a whole. `message` says what was expected.
    """

    path: str
    message: str
    line: int | None = None


class ConfigError(AiLbError):
    """The configuration cannot be used. `problems` lists all that was found, in file order."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("; ".join(self.lines()))

    def lines(self) -> list[str]:
        """One line for each problem: `file:line: key.path: what was expected`."""
        return [
            ": ".join(
                part
                for part in (
                    self.source if problem.line is None else f"{self.source}:{problem.line}",
                    problem.path,
                    problem.message,
                )
                if part
            )
            for problem in self.problems
        ]


class RouteError(AiLbError):
    """This request cannot be placed.

    The message is for the client, so it holds no address, path or name of the installation.
    `retry_after_s` is sent as Retry-After; it is `usual_retry_after_s` where nothing better is known.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "ai_lb_internal"
    usual_retry_after_s: ClassVar[int | None] = None

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = self.usual_retry_after_s if retry_after_s is None else retry_after_s
        self.model: str | None = None
        """What was asked for, where that was read; for the record, not for the client."""


class Malformed(RouteError):
    """The head of the request could be read as another one by another server."""

    status = 400
    code = "malformed_request"


class TooLarge(RouteError):
    """The request's body is larger than the balancer takes."""

    status = 413
    code = "request_too_large"


class HeadTooLarge(RouteError):
    """The request's head is larger than the balancer takes."""

    status = 431
    code = "head_too_large"


class NoRoute(RouteError):
    """No route matches the request's host, path and model."""

    status = 404
    code = "no_route"


class ModelNotFound(RouteError):
    """No endpoint of the cluster serves the model that was asked for."""

    status = 404
    code = "model_not_found"


class NoEndpoint(RouteError):
    """The cluster has no endpoint that may serve the request now."""

    status = 503
    code = "no_endpoint"
    usual_retry_after_s = 1


class Draining(RouteError):
    """The balancer is about to end and takes no more requests."""

    status = 503
    code = "draining"
    usual_retry_after_s = 1


class Saturated(RouteError):
    """Every candidate is at its in-flight limit."""

    status = 429
    code = "saturated"
    usual_retry_after_s = 1


class EndpointUnreachable(RouteError):
    """No endpoint that was tried accepts connections."""

    status = 503
    code = "endpoint_unreachable"
    usual_retry_after_s = 1


class EndpointFailed(RouteError):
    """The endpoint gave no valid response."""

    status = 502
    code = "endpoint_failed"


class EndpointBusy(RouteError):
    """The endpoint says that its queue is full, and no other was left to ask."""

    status = 503
    code = "endpoint_busy"
    usual_retry_after_s = 1


class EndpointTimedOut(RouteError):
    """The endpoint gave no response within the route's time-out."""

    status = 504
    code = "endpoint_timed_out"


class InternalError(RouteError):
    """A fault of the balancer itself."""
