"""Another endpoint within the same flow: an HTTP layer that asks before it gives up.

mitmproxy answers a failed endpoint with an HTML page that names the address. Here, as long as the client has
seen nothing of a response, the addons are asked first, by the hook `ai_lb_retry`: they point the flow
somewhere else, or the client gets an error in the form of its API. The client's connection, the flow and its
`request` hook stay one, no further connection or hop is added, and streams still pass through as they come.

What is held back, so that there is something to decide: the body of a response with status 429 or 5xx, up to
64 KiB or 250 ms; and a stream, headers included, until its first event with data, since engines whose
queue is full answer 200 and say so in the first event.

Exactly one of `response` and `error` is called for a flow, as without this layer: `response` for what an
endpoint answered, whatever its status; `error` where the answer is ours because the endpoints gave none.
`responseheaders` is called for the one response that is passed on.

Where this layer is not: replays (`-C`), which mitmproxy sends through a layer of its own; requests that are
streamed to the endpoint, as the body is not kept; and, once it is sent, a request over HTTP/2 to
the endpoint, as that connection also belongs to others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mitmproxy import flow, http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import commands, events, layer, mode_specs, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer, modes
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpLayer,
    HTTPMode,
    HttpStream,
    SendHttp,
)
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
    ResponseTrailers,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook

from addons.failover_held import BodyEvent, Held, Next, is_failure, is_stream, is_valid
from lb_core.replies import error_reply
from lb_core.request import api_of
from lb_core.retry import Cause, Failure, error_of

DRAIN_S = 0.25
"""Seconds for the rest of a failed response to come, so that its connection can be kept."""

_CLOSED_CONNECTIONS = 16
"""Entries of a client connection's list of endpoint connections above which the closed ones are taken out."""

type Holds = Callable[[http.HTTPFlow], bool]


@dataclass
class Question:
    """What the hook `ai_lb_retry` is called with. Without an answer there is no other attempt."""

    flow: http.HTTPFlow
    """Its `response` is None: what the endpoint answered has not been accepted."""
    failure: Failure
    """What happened. May be replaced, by one with the cause `TIMED_OUT`, to tell the client so."""
    response: http.Response | None = None
    """What the endpoint answered, without its body; goes to the client if there is no other attempt."""
    again: bool = False
    """Answer: the host, port and scheme of the flow's request now name the endpoint to try next."""
    reply: http.Response | None = None
    """Answer: what the client gets if there is neither another attempt nor a response; None is the usual."""


@dataclass
class RetryHook(commands.StartHook):
    """An attempt failed before the client saw anything of a response. May be answered by an `async def`."""

    name = "ai_lb_retry"
    question: Question


def next_layer(nextlayer: layer.NextLayer, *, holds: Holds = lambda flow: True) -> None:
    """Serve the clients of a `reverse:http:` listener by the layer below; call it from the hook of this name.

    `holds` tells if a stream of this flow waits for its first event.
    """
    context = nextlayer.context
    mode = context.client.proxy_mode
    if nextlayer.layer or len(context.layers) != 1 or not isinstance(context.layers[0], modes.ReverseProxy):
        return
    if not isinstance(mode, mode_specs.ReverseMode) or mode.scheme != "http":
        return
    stack = tunnel.LayerStack()
    if starts_like_tls_record(nextlayer.data_client()):
        stack /= ClientTLSLayer(context)
    stack /= FailoverLayer(context, holds)
    nextlayer.layer = stack[0]


class FailoverLayer(HttpLayer):
    """mitmproxy's HTTP layer of one client connection, with streams that ask."""

    def __init__(self, context: Context, holds: Holds) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.holds = holds

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Begin a request."""
        if len(self.connections) > _CLOSED_CONNECTIONS:
            self._forget_closed()
        stream = self.streams[stream_id] = FailoverStream(self, stream_id)
        yield from self.event_to_child(stream, events.Start())

    def forget_failures(self) -> None:
        """Let endpoints that refused be connected to again.

        mitmproxy remembers the error of a connection as long as the client's connection lives.
        """
        for connection in self.connections:
            if isinstance(connection, Server) and connection.error:
                connection.error = None

    def abandon(self, connection: Server) -> layer.CommandGenerator[None]:
        """Close a connection, and hear no more of it.

        A dead endpoint may be reported twice, as a parse error and as closed; the second report
        would be charged to the next attempt.
        """
        self.connections[connection] = _Sink(self.context.fork())
        if connection.state is not ConnectionState.CLOSED:
            yield commands.CloseConnection(connection)

    def _forget_closed(self) -> None:
        # mitmproxy keeps an entry for each connection there ever was, and walks them for each request.
        # `timestamp_end` is set after the last event of a connection.
        used = {stream.context.server for stream in self.streams.values()}
        for connection in tuple(self.connections):
            if isinstance(connection, Server) and connection.timestamp_end and connection not in used:
                del self.connections[connection]


class _Sink(layer.Layer):
    """Stands where the layer of an abandoned connection was."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from ()


class FailoverStream(HttpStream):
    """One request. Until something of a response is passed on, an endpoint's failure is a question."""

    def __init__(self, parent: FailoverLayer, stream_id: int) -> None:
        super().__init__(parent.context.fork(), stream_id)
        self._parent = parent
        self._attempt = 1
        self._reused = False
        self._held: Held | None = None
        self._drain_timer: commands.RequestWakeup | None = None

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        # Not a generator itself: this runs for each chunk.
        if isinstance(event, events.Wakeup):
            return self._drained(event)
        generator: layer.CommandGenerator[None] = super()._handle_event(event)
        return generator

    # -- there: connect and send --------------------------------------------------------------------

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """Connect to where the request points, and where the addons then point it, until one accepts."""
        if self.client_state != self.state_done:  # the request is streamed to the endpoint
            return (yield from super().make_server_connection())
        while True:
            request, began = self.flow.request, time.time()
            connection, error = yield GetHttpConnection(
                (request.host, request.port),
                request.scheme == "https",
                self.flow.server_conn.via,
                self.flow.server_conn.transport_protocol,
            )
            if error is None:
                self.context.server = self.flow.server_conn = connection
                self._reused = (connection.timestamp_start or began) < began
                return not (yield from self._stopped())
            self._parent.forget_failures()
            cause = Cause.CONNECT_TIMEOUT if error == CONNECT_TIMEOUT else Cause.CONNECT
            question = yield from self._ask(self._failure(cause))
            if question is None:
                return False
            if not question.again:
                yield from self._fail(question)
                return False
            self._attempt += 1

    def _send_again(self) -> layer.CommandGenerator[None]:
        # What mitmproxy does after the `request` hook.
        self._attempt += 1
        self._held = None
        self.server_state = self.state_wait_for_response_headers
        if not (yield from self.make_server_connection()):
            return
        request, server = self.flow.request, self.context.server
        content = request.raw_content
        at_end = not (content or request.trailers)
        yield SendHttp(RequestHeaders(self.stream_id, request, at_end), server)
        if content:
            yield SendHttp(RequestData(self.stream_id, content), server)
        if request.trailers:
            yield SendHttp(RequestTrailers(self.stream_id, request.trailers), server)
        yield SendHttp(RequestEndOfMessage(self.stream_id), server)

    # -- and back: hold, judge, pass on -------------------------------------------------------------

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        """The headers of a response: decide if it is held back."""
        response = event.response
        if not self._may_ask():
            yield from super().state_wait_for_response_headers(event)
        elif self.context.options.validate_inbound_headers and not is_valid(response):
            yield from self._failed(Cause.INVALID)
        elif is_failure(response) or (is_stream(response) and self._parent.holds(self.flow)):
            self._held = Held(event)
            self.server_state = self.state_hold_response
            if self._held.failed:
                yield self._drain()
        else:
            yield from super().state_wait_for_response_headers(event)

    def state_hold_response(self, event: BodyEvent) -> layer.CommandGenerator[None]:
        """The body of a held response."""
        held = self._held
        assert held is not None
        match held.take(event):
            case Next.PASS:
                yield from self._pass_on(held)
            case Next.JUDGE:
                yield from self._judge(held)
            case Next.DRAIN:
                yield self._drain()

    def _drain(self) -> commands.RequestWakeup:
        self._drain_timer = commands.RequestWakeup(DRAIN_S)
        return self._drain_timer

    def _drained(self, event: events.Wakeup) -> layer.CommandGenerator[None]:
        held = self._held
        if held and event.command is self._drain_timer and self.server_state == self.state_hold_response:
            yield from self._judge(held)

    def _judge(self, held: Held) -> layer.CommandGenerator[None]:
        response, code = held.head.response, held.error
        if code is None:
            failure = self._failure(Cause.STATUS, status=response.status_code)
        else:
            failure = self._failure(
                Cause.ERROR_EVENT, status=int(code) if code.isdecimal() else None, code=code
            )
        question = yield from self._ask(failure, response)
        if question is None:
            return
        if not question.again:
            yield from self._pass_on(held)
            return
        if not held.complete:
            yield from self._abandon()
        yield from self._send_again()

    def _pass_on(self, held: Held) -> layer.CommandGenerator[None]:
        self._held = None
        yield from super().state_wait_for_response_headers(held.head)
        for event in held.body:
            yield from self.server_state(event)

    # -- failures -----------------------------------------------------------------------------------

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        """The client has gone, or the endpoint has failed."""
        if isinstance(event, RequestProtocolError) or not self._may_ask():
            yield from super().handle_protocol_error(event)
        elif self.server_state == self.state_consume_response_body:
            # The `responseheaders` of this response are told, so it cannot be replaced by another one.
            yield from self._abandon()
            yield from self._fail(Question(self.flow, self._failure(Cause.CLOSED)))
        elif self.server_state == self.state_hold_response and self._held and self._held.failed:
            yield from self._failed(Cause.STATUS, status=self._held.head.response.status_code)
        elif self.server_state in (self.state_wait_for_response_headers, self.state_hold_response):
            invalid = not event.message.startswith(_CLOSED)
            yield from self._failed(Cause.INVALID if invalid else Cause.CLOSED)
        else:
            yield from super().handle_protocol_error(event)
