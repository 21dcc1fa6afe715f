"""A client's HTTP/1 connection, on which mitmproxy's own errors have the form of the client's API.

mitmproxy answers a request that it does not take with an HTML page that names its version, and closes at
once, so that who is still sending may see a reset connection instead.
"""

from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http.http1 import assemble_response
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http._events import ErrorCode, ResponseProtocolError
from mitmproxy.proxy.layers.http._http1 import Http1Server

from lb_core.errors import EndpointFailed, Malformed, RouteError, TooLarge
from lb_core.replies import error_reply
from lb_core.request import api_of

LINGER_S = 5.0
"""Seconds that a client has to read why its request is not taken, while it may still be sending it."""


class ClientConnection(Http1Server):
    """mitmproxy's HTTP/1 connection of a client."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        # Not a generator itself: this runs for each chunk.
        if isinstance(event, ResponseProtocolError):
            return self._refuse(event)
        if isinstance(event, events.Wakeup):
            return self._close()
        generator: layer.CommandGenerator[None] = super()._handle_event(event)
        return generator

    def read_headers(self, event: events.ConnectionEvent) -> layer.CommandGenerator[None]:
        """Read the head of a request; all that is sent from here is that it is none."""
        for command in super().read_headers(event):
            if isinstance(command, commands.SendData):
                command.data = self._reply(Malformed("The request is not valid HTTP."))
            yield command

    def _refuse(self, event: ResponseProtocolError) -> layer.CommandGenerator[None]:
        status = event.code.http_status_code()
        if self.response or status is None or not self.conn.state & ConnectionState.CAN_WRITE:
            yield from super()._handle_event(event)
            return
        yield commands.SendData(self.conn, self._reply(_error(event.code, status)))
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
