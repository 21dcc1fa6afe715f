"""What the end of an attempt says about the endpoint.

    no connection                       refused   unambiguous, and cheap to have tried
    reset, cut, not HTTP, other 5xx     failure
    429, 503, 529                       busy      alive; rests as long as it asks for
    2xx, 3xx, other 4xx, 501, 505       success   what the client asked was at fault, if anything
    the route's own time-out            timed out says nothing alone; many are `silence`
    client left, given up by us         ignored

501 and 505 are a matter of the request: llama-server answers 501 for features that are switched off.
529 is what Anthropic's API calls overloaded.
"""

import enum
import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

from lb_core.error_words import NOT_TAKEN
from lb_core.types import Ending, Outcome

REST_S = 1.0
"""The rest of an endpoint that is busy and does not say for how long; vLLM's 503 has no Retry-After."""
MAX_REST_S = 30.0

_REQUEST_AT_FAULT = frozenset({501, 505})
_SECONDS = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_LONGEST_DATE = 64


class Kind(enum.StrEnum):
    """What an attempt counts as."""

    SUCCESS = "success"
    REFUSED = "refused"
    """No connection: refused, unreachable, timed out, TLS or DNS failure."""
    FAILURE = "failure"
    BUSY = "busy"
    TIMED_OUT = "timed_out"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A kind, and for `busy` how long the endpoint rests."""

    kind: Kind
    rest_s: float = 0.0


SUCCESS = Verdict(Kind.SUCCESS)
REFUSED = Verdict(Kind.REFUSED)
FAILURE = Verdict(Kind.FAILURE)
TIMED_OUT = Verdict(Kind.TIMED_OUT)
IGNORED = Verdict(Kind.IGNORED)


def judge(
    outcome: Outcome,
    *,
    unix_time: float,
    connected: bool = True,
    retry_after: str | None = None,
    error_code: int | None = None,
) -> Verdict:
    """Judge one attempt by its end.

    `connected` is False when no connection came about. `retry_after` is the header as it came.
    `error_code` is the code of an error event that came before any content: vLLM answers 200 and then
    `{"error": {"code": 503}}` when its queue is full. `unix_time` is now; Retry-After may be a date.
    """
    if outcome.ending in {Ending.CLIENT_LEFT, Ending.ABANDONED}:
        return IGNORED
    if outcome.ending is Ending.TIMED_OUT:
        return TIMED_OUT
    if not connected:
        return REFUSED
    status = outcome.status if error_code is None else error_code
    if status in NOT_TAKEN:
        return Verdict(Kind.BUSY, rest_seconds(retry_after, unix_time=unix_time))
    if status is not None and (400 <= status < 500 or status in _REQUEST_AT_FAULT):
        # Also if the connection broke afterwards: an answer may come before the request is read.
        return SUCCESS
    if outcome.ending is Ending.UPSTREAM_FAILED or (status is not None and status >= 500):
        return FAILURE
    return IGNORED if status is None else SUCCESS


def rest_seconds(retry_after: str | None, *, unix_time: float) -> float:
    """Read a Retry-After header (RFC 9110, 10.2.3): from 0 to 30 s, 1 s where it cannot be read."""
    text = "" if retry_after is None else retry_after.strip()
    wanted = float(text) if _SECONDS.fullmatch(text) else _until(text, unix_time)
    return min(max(wanted, 0.0), MAX_REST_S)


def _until(date: str, unix_time: float) -> float:
    if not date or len(date) > _LONGEST_DATE:
        return REST_S
    try:
        then = parsedate_to_datetime(date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - unix_time
    except (ValueError, OverflowError):
        return REST_S
