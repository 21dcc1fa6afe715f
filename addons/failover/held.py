"""A response that is held back: the client has seen nothing of it, so another may still take its place."""

import enum
import logging
import time

from mitmproxy import http
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy.layers.http._events import (
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseTrailers,
)

from lb_core.sse import SseMeter

logger = logging.getLogger(__name__)

DRAIN_S = 0.25
"""Seconds for the rest of a failed response to come, so that its connection can be kept."""

HELD_BYTES = 64 << 10
"""Bytes of a body that are held; then what is there is passed on, or dropped with its connection."""

type BodyEvent = ResponseData | ResponseTrailers | ResponseEndOfMessage


class Next(enum.Enum):
    """What to do with a held response."""

    WAIT = enum.auto()
    DRAIN = enum.auto()
    """It is an error; its end is near, and frees the connection."""
    JUDGE = enum.auto()
    """It is an error, and all of it is here or too much of it."""
    PASS = enum.auto()


class Held:
    """Headers and body so far, in the pieces in which they came."""

    def __init__(self, head: ResponseHeaders) -> None:
        self.head = head
        self.body: list[BodyEvent] = []
        self.complete = False
        self.failed = head.response.status_code != 200  # else it is a stream
        """It is, or has become, an error."""
        self.error: str | None = None
        """The word for the error in its first event."""
        self._size = 0
        self._meter = None if self.failed else SseMeter()

    def take(self, event: BodyEvent) -> Next:
        """Add what came next."""
        self.body.append(event)
        if isinstance(event, ResponseData):
            return self._data(event.data)
        if isinstance(event, ResponseEndOfMessage):
            self.complete = True
            if self._meter is not None:
                self._meter.close()
                self._look(self._meter)
            return Next.JUDGE if self.failed else Next.PASS
        return Next.WAIT

    def _data(self, data: bytes) -> Next:
        self._size += len(data)
        found = Next.WAIT
        if self._meter is not None:
            try:
                self._meter.feed(data, time.monotonic())
                found = self._look(self._meter)
            except Exception:  # would crash mitmproxy's layer, and the client would wait for ever
                logger.exception("ai-lb: a response is passed on unread after a fault")
                self._meter, found = None, Next.PASS
        if self._size > HELD_BYTES:
            return Next.JUDGE if self.failed else Next.PASS
        return found

    def _look(self, meter: SseMeter) -> Next:
        if not meter.events:
            return Next.WAIT  # comments: engines send them while the request waits in their queue
        self._meter = None
        if meter.error is None or meter.first_content_at is not None:
            return Next.PASS
        self.failed, self.error = True, meter.error
        return Next.DRAIN


def is_valid(response: http.Response) -> bool:
    """Tell if mitmproxy would let these headers pass; otherwise it answers with an error page."""
    try:
        validate_headers(response)
    except ValueError:
        return False
    return True
