"""A client's HTTP/1 connection, on which mitmproxy's own errors have the form of the client's API.

mitmproxy answers a request that it does not take with an HTML page that names its version, and closes at
once, so that who is still sending may see a reset connection instead. It has no limit on the size of a head
or on the time for it, so that one client could fill the memory and stop all others; here there are both.
"""

import re
import time

from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http.http1 import assemble_response
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestData, ResponseProtocolError
from mitmproxy.proxy.layers.http._http1 import Http1Server

from lb_core.errors import EndpointFailed, HeadTooLarge, Malformed, RouteError, TooLarge
from lb_core.replies import error_reply
from lb_core.request import api_of

MAX_HEAD = 64 * 1024
"""Bytes that a request's line and headers may have."""

MAX_AHEAD = 1024 * 1024
"""Bytes that a client may send before it has the answer to its request; others are cut off."""

_HEAD_END = re.compile(rb"\n\r?\n")
"""As mitmproxy takes it."""

HEAD_S = 60.0
"""Seconds from the first byte of a head to its last."""

LINGER_S = 5.0
"""Seconds that a client has to read why its request is not taken, while it may still be sending it."""


class ClientConnection(Http1Server):
    """mitmproxy's HTTP/1 connection of a client."""

    _head_began: float | None = None
    """When the first part of a head came that is not whole yet."""
    _timer: commands.RequestWakeup | None = None
    """What wakes us to look at that; one at a time, since a client can begin many heads in a minute."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        # Not a generator itself: this runs for each chunk.
        if isinstance(event, ResponseProtocolError):
            return self._refuse(event)
        if isinstance(event, events.Wakeup):
            return self._look_at_head() if event.command is self._timer else self._close()
        generator: layer.CommandGenerator[None] = super()._handle_event(event)
        return generator

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Read the head of a request; all that is sent from here is that it is none."""
        if len(self.buf) > MAX_HEAD and not _HEAD_END.search(bytes(self.buf), 0, MAX_HEAD):
            yield from self._say(HeadTooLarge("The request's head is larger than the balancer takes."))
            return
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):
                command.data = self._reply(Malformed("The request is not valid HTTP."))
            yield command
        if self.state != self.read_headers or not self.buf:
            self._head_began = None
        elif self._head_began is None:
            self._head_began = time.monotonic()
            if self._timer is None:
                yield from self._wake_in(HEAD_S)

    def _wake_in(self, seconds: float) -> layer.CommandGenerator[None]:
        self._timer = commands.RequestWakeup(seconds)
        yield self._timer

    def _look_at_head(self) -> layer.CommandGenerator[None]:
        self._timer = None
        if self._head_began is None:
            return
        left_s = self._head_began + HEAD_S - time.monotonic()
        yield from self._wake_in(left_s) if left_s > 0 else self._close()

    def read_body(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Read the body; what came together goes on together, since each event costs more than its chunk."""
        pieces: list[bytes] = []
        for command in super().read_body(event):
            if isinstance(command, ReceiveHttp) and isinstance(command.event, RequestData):
                pieces.append(command.event.data)
                continue
            if pieces:
                yield ReceiveHttp(RequestData(self.stream_id, b"".join(pieces)))
                pieces = []
            yield command
        if pieces:
            yield ReceiveHttp(RequestData(self.stream_id, b"".join(pieces)))

    def done(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Nothing more is read; a client may go on sending for a while."""
        self.buf.maybe_extract_at_most(len(self.buf))
        yield from ()

    def wait(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Wait for the answer; mitmproxy keeps what the client sends meanwhile."""
        if isinstance(event, events.DataReceived) and len(self.buf) > MAX_AHEAD:
            event = events.ConnectionClosed(self.conn)
        yield from super().wait(event)

    def _refuse(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        status = event.code.http_status_code()
        if self.response or status is None or not self.conn.state & ConnectionState.CAN_WRITE:
            yield from super()._handle_event(event)
            return
        yield from self._say(_error(event.code, status))

    def _say(self, error: RouteError) -> layer.CommandGenerator[None]:
        self.state = self.done
        yield commands.SendData(self.conn, self._reply(error))
        yield commands.CloseTcpConnection(self.conn, half_close=True)
        yield commands.RequestWakeup(LINGER_S)

    def _close(self) -> layer.CommandGenerator[None]:
        if self.conn.state is not ConnectionState.CLOSED:
            yield commands.CloseConnection(self.conn)

    def _reply(self, error: RouteError) -> bytes:
        response = response_of(error, self.request)
        response.headers["connection"] = "close"
        raw: bytes = assemble_response(response)
        return raw


def response_of(error: RouteError, request: http.Request | None) -> http.Response:
    """The error in the form of the API that was asked; `request` is None where it could not be read."""
    reply = error_reply(error, api_of(request.path) if request else None)
    body = b"" if request and request.method == "HEAD" else reply.body
    return http.Response.make(reply.status, body, reply.headers)


def _error(code: ErrorCode, status: int) -> RouteError:
    if code is ErrorCode.REQUEST_TOO_LARGE:
        return TooLarge("The request's body is larger than the balancer takes.")
    if status < 500:
        return Malformed("The request is not one that the balancer takes.")
    return EndpointFailed("The endpoint gave no valid response.")
