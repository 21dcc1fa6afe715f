"""What may be tried again at another endpoint, and how often.

A retry costs a whole prefill, so it is rationed: without a budget, the retries of an overload become its
cause. Where nothing was sent, as with a refused connection, only the number of endpoints limits it.
The rules and values are E4 of the fault catalogue; the budget is Finagle's, with smaller numbers.
"""

import enum
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Annotated

from pydantic import Field

from lb_core.error_words import NOT_TAKEN
from lb_core.errors import EndpointBusy, EndpointFailed, EndpointTimedOut, EndpointUnreachable, RouteError
from lb_core.recent import WINDOW_S, Recent
from lb_core.request import LLMRequest
from lb_core.types import Decision, Endpoint, Snapshot, Tier

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110, 9.2.2, less TRACE
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_KEEPS_STATE = re.compile(r"/v1/(batches|files|uploads)(/|\Z)")


class Cause(enum.StrEnum):
    """How an attempt failed."""

    CONNECT = "connect"
    """No connection: refused, unreachable, no address for the name, no TLS."""
    CONNECT_TIMEOUT = "connect_timeout"
    NO_SOCKET = "no_socket"
    """This process has no file or memory left for a connection; no endpoint is to blame or could help."""
    STALE = "stale"
    """A connection that had served before was closed as the request came, most likely for having been idle:
    that says nothing of the endpoint."""
    CLOSED = "closed"
    """Connected and sent, then closed or reset before the response."""
    INVALID = "invalid"
    """The response is not HTTP, or not safe to pass on."""
    STATUS = "status"
    ERROR_EVENT = "error_event"
    """A 200 whose first event says that it is an error."""
    TIMED_OUT = "timed_out"
    """Nothing came within the route's own time-out."""


_UNSENT = frozenset({Cause.CONNECT, Cause.CONNECT_TIMEOUT})


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt, before anything of a response went to the client."""

    cause: Cause
    status: int | None = None
    """The status of the response, or what the error event counts as; None where there is neither."""


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """The `retry` block of a route. The fields are its keys."""

    enabled: Annotated[bool, Field(strict=True)] = True
    attempts: Annotated[int, Field(ge=0, le=100)] = 1
    """How often a request that was sent is sent again."""
    connect_attempts: Annotated[int, Field(ge=0, le=100)] = 3
    """How many other endpoints are tried when there is no connection."""
    connect_timeout_s: Annotated[float, Field(ge=0.01, le=60)] = 1.0
    on_statuses: tuple[Annotated[int, Field(ge=400, le=599)], ...] = (429, 502, 503, 504, 529)
    budget_percent: Annotated[float, Field(ge=0, le=1_000)] = 10.0
    """Retries, in percent of the requests of the last 10 s..."""
    budget_per_s: Annotated[float, Field(ge=0, le=1_000)] = 1.0
    """... and these in addition, so that little traffic is retried too."""
    hold_streams: Annotated[bool, Field(strict=True)] = True
    """Hold a stream back until its first event, to try again if that is an error..."""
    hold_s: Annotated[float, Field(ge=0.01, le=3600)] | None = None
    """... or until so many seconds have passed: then the client sees that it lives, and must bear its end.
    An engine whose queue is full says so within milliseconds. None is as long as it takes."""


class Verdict(enum.StrEnum):
    """Whether to try again, and if not, why."""

    RETRY = "retry"
    DISABLED = "disabled"
    TIMED_OUT = "timed_out"
    NOT_RETRYABLE = "not_retryable"
    """Another endpoint would say the same, or the configuration says that this status is passed on."""
    NOT_REPEATABLE = "not_repeatable"
    """Sent twice, the request might be carried out twice."""
    ATTEMPTS_SPENT = "attempts_spent"
    BUDGET_SPENT = "budget_spent"


class Repeat(enum.Enum):
    """What a request allows after it was sent."""

    SAFE = enum.auto()
    UNLESS_TAKEN = enum.auto()
    """Only if the endpoint said that it has not begun."""
    NEVER = enum.auto()


def repeatable(*, method: str, path: str, llm: LLMRequest | None) -> Repeat:
    """Judge a request. Inference has no effect but its answer, unless the answer is stored at the engine."""
    if llm is not None and llm.known:
        return Repeat.NEVER if llm.stored or llm.background else Repeat.SAFE
    if _KEEPS_STATE.search(path.partition("?")[0]) and method not in _READING:
        return Repeat.NEVER
    return Repeat.SAFE if method in _IDEMPOTENT else Repeat.UNLESS_TAKEN


class RetryBudget:
    """Counts the requests and the retries of this process in the last 10 s."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._requests = Recent(clock=clock)
        self._retries = Recent(clock=clock)

    def requested(self) -> None:
        """A request came in."""
        self._requests.add()

    def retried(self) -> None:
        """A request was sent again."""
        self._retries.add()

    def allows(self, config: RetryConfig) -> bool:
        """Tell if there is room for one more retry."""
        limit = self._requests.total() * config.budget_percent / 100 + WINDOW_S * config.budget_per_s
        return self._retries.total() + 1 <= limit


class Retries:
    """The tries of one request: `judge` asks, `spend` tells that it was done."""

    def __init__(self, config: RetryConfig, budget: RetryBudget, repeat: Repeat) -> None:
        self._config = config
        self._budget = budget
        self._repeat = repeat
        self._connects = 0
        self._sends = 0

    @property
    def connect_timeout_s(self) -> float:
        """How long a connection for it may take."""
        return self._config.connect_timeout_s

    @property
    def hold_s(self) -> float | None:
        """How long a stream waits for its first event, which may be an error to be tried again after.

        None is not at all, inf as long as it takes.
        """
        config = self._config
        if not config.enabled or not config.hold_streams or self._repeat is Repeat.NEVER:
            return None
        return inf if config.hold_s is None else config.hold_s

    def holds(self, status: int) -> bool:
        """Whether a response with this status is held back: the request may be tried again after it."""
        return self.judge(Failure(Cause.STATUS, status=status)) is Verdict.RETRY

    def judge(self, failure: Failure) -> Verdict:
        """Tell if this request may go to another endpoint after this failure. Changes nothing."""
        config, cause = self._config, failure.cause
        if cause is Cause.TIMED_OUT:
            return Verdict.TIMED_OUT
        if not config.enabled:
            return Verdict.DISABLED
        if cause in _UNSENT:
            return Verdict.RETRY if self._connects < config.connect_attempts else Verdict.ATTEMPTS_SPENT
        if cause is Cause.NO_SOCKET or not _retryable(failure, config):
            return Verdict.NOT_RETRYABLE
        not_taken = failure.status in NOT_TAKEN
        if self._repeat is Repeat.NEVER or (self._repeat is Repeat.UNLESS_TAKEN and not not_taken):
            return Verdict.NOT_REPEATABLE
        if self._sends >= config.attempts:
            return Verdict.ATTEMPTS_SPENT
        return Verdict.RETRY if self._budget.allows(config) else Verdict.BUDGET_SPENT

    def spend(self, failure: Failure) -> None:
        """The request goes to another endpoint after this failure."""
        if failure.cause in _UNSENT:
            self._connects += 1
        else:
            self._sends += 1
            self._budget.retried()


def _retryable(failure: Failure, config: RetryConfig) -> bool:
    if failure.cause is Cause.STATUS:
        return failure.status in config.on_statuses
    if failure.cause is Cause.ERROR_EVENT:
        status = failure.status
        return status is None or status >= 500 or status in NOT_TAKEN
    return True


def error_of(failure: Failure) -> RouteError:
    """What the client is told when a failure is the end and there is no response to pass on."""
    if failure.cause in _UNSENT or failure.cause is Cause.NO_SOCKET:
        return EndpointUnreachable("No endpoint could be reached.")
    if failure.cause is Cause.TIMED_OUT:
        return EndpointTimedOut("The endpoint did not answer in time.")
    if failure.cause is Cause.ERROR_EVENT and failure.status in NOT_TAKEN:
        return EndpointBusy("The endpoint has no room for the request.")
    return EndpointFailed("The endpoint failed before it answered.")


def remaining(decision: Decision, tried: Collection[str], snapshot: Snapshot) -> Decision:
    """The decision's tiers, with the same indices, of those who are available now and were not tried.

    Each choice is that of `snapshot`: a reload may have moved an endpoint to another address since.
    """
    now = {choice.endpoint.name: choice for choice in snapshot.candidates}
    for name in tried:
        now.pop(name, None)
    tiers = (
        Tier(
            tuple(now[choice.endpoint.name] for choice in tier.choices if choice.endpoint.name in now),
            tier.reason,
            tier.detail,
        )
        for tier in decision.tiers
    )
    return replace(decision, tiers=tuple(tiers))


def joined(decision: Decision, before: Iterable[Endpoint], snapshot: Snapshot) -> Decision:
    """The decision with those as the last tier who were not among the endpoints before it was made."""
    known = {endpoint.name for endpoint in before}
    new = tuple(choice for choice in snapshot.candidates if choice.endpoint.name not in known)
    return replace(decision, tiers=(*decision.tiers, Tier(new, "joined"))) if new else decision
