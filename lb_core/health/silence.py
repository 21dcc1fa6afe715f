"""An engine that answers nothing: known by what it does not say, whatever its pages say.

A hung vLLM goes on to accept requests, to answer /health and to send the headers of streams, and its metrics
read 0 (vllm #36451, #39863). What it does not do is send a token. So an endpoint is silent when none of its
streams, old or new, has had a token in `silent_s`, although one of them has waited for its first one all that
time, or several requests were given up meanwhile. An answer in one piece may honestly take longer: it shows
silence only with an engine whose metrics page hangs all that time, too, as that of a stopped process does.
"""

from math import inf

_GIVEN_UP = 5
"""So many requests that got nothing weigh as much as one that waits: clients may leave before an honest
first token, and with a short `ttft_timeout` none waits for long."""
_PAUSE = 1 / 4
"""A pause of this share of `silent_s` makes what was given up before it old: nobody listened meanwhile."""


class Silence:
    """The silence of one endpoint. Times are those of the caller's clock, in order."""

    def __init__(self) -> None:
        self._waiting: dict[object, float] = {}
        """The streams without a token, oldest first, and when each was sent."""
        self._whole: dict[object, float] = {}
        """The same of answers in one piece."""
        self._hangs_since = inf
        self._heard_at = -inf
        self._given_up = 0
        self._since = inf
        """When the first of those that were given up was sent."""
        self._busy_at = -inf
        """When the last was given up."""

    def began(self, request: object, now: float, *, whole: bool = False) -> None:
        """It was sent, for an answer in one piece if `whole`; `answered` or `unanswered` follows once."""
        if whole:
            self._whole[request] = now
        else:
            self._waiting[request] = now

    def answered(self, request: object) -> None:
        """Its first token came; `alive` follows."""
        self._drop(request)

    def unanswered(self, request: object) -> None:
        """It ended without one."""
        self._drop(request)

    def _drop(self, request: object) -> None:
        del (self._waiting if request in self._waiting else self._whole)[request]

    def page(self, now: float, hangs: bool) -> None:
        """Its metrics page does not come in time any more, or came, or was refused."""
        self._hangs_since = now if hangs else inf

    def given_up(self, now: float, started: float, silent_s: float) -> None:
        """A request, streamed or not, ended because nothing came in time or its client did not wait."""
        if started - self._busy_at > _PAUSE * silent_s:
            self._given_up, self._since = 0, inf
        self._given_up += 1
        self._since = min(self._since, max(started, self._heard_at))
        self._busy_at = now

    def alive(self, now: float) -> None:
        """It said something, in whatever stream."""
        self._heard_at = now
        self._given_up, self._since = 0, inf

    def lasts(self, now: float, silent_s: float) -> bool:
        """Tell if it is silent."""
        oldest = next(iter(self._waiting.values()), now)
        if now - max(oldest, self._heard_at) >= silent_s:
            return True
        oldest = next(iter(self._whole.values()), now)
        if now - max(oldest, self._heard_at, self._hangs_since) >= silent_s:
            return True
        recent = self._waiting or now - self._busy_at <= _PAUSE * silent_s
        return self._given_up >= _GIVEN_UP and now - self._since >= silent_s and bool(recent)
