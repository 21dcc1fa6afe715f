"""One request that asks the addons before it gives up; `addons.failover` tells what for."""

import errno
import time
from collections import deque
from math import inf

from mitmproxy import flow, http
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
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

from addons.client_connection import response_of
from addons.client_stream import ClientStream
from addons.failover.connections import EndpointConnections
from addons.failover.held import DRAIN_S, BodyEvent, Held, Next, is_valid
from addons.failover.question import Question, RetryHook
from addons.failover.timers import CONNECT_TIMEOUT
from lb_core.error_words import NOT_TAKEN, status_of
from lb_core.retry import Cause, Failure, error_of

_CLOSED = "closed connection"
"""In mitmproxy's messages of a connection that ended before or within a response."""

_STALE_S = 1.0
"""Seconds in which a request learns that its connection had been closed before it: a round trip, and what
this process may be late. An endpoint that ends a connection later has had the request."""

_OUR_OWN = tuple(f"[Errno {number}]" for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_OF_A_RESPONSE = (
    ResponseHeaders,
    ResponseData,
    ResponseTrailers,
    ResponseEndOfMessage,
    ResponseProtocolError,
)


class FailoverStream(ClientStream):
    """One request. Until something of a response is passed on, an endpoint's failure is a question."""

    def __init__(self, parent: EndpointConnections, stream_id: int) -> None:
        super().__init__(parent.context.fork(), stream_id)
        self._parent = parent
        self._reused = False
        """The connection had served before."""
        self._sent_at = 0.0
        self._held: Held | None = None
        self._timer: commands.RequestWakeup | None = None
        """Ends the holding."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        # Not a generator itself: this runs for each chunk.
        if isinstance(event, events.Wakeup):
            return self._waited(event)
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
                self._sent_at = time.monotonic()
                return not (yield from self._stopped())
            self._parent.forget_failures()
            question = yield from self._ask(Failure(_cause_of(error)))
            if question is None:
                return False
            if not question.again:
                yield from self._fail(question)
                return False

    def _send_again(self) -> layer.CommandGenerator[None]:
        # What mitmproxy does after the `request` hook.
        self._held = None
        # The rest of the dropped response may have come while the addons were asked.
        self._paused_event_queue = deque(
            event for event in self._paused_event_queue if not isinstance(event, _OF_A_RESPONSE)
        )
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
            yield from self._failed(Failure(Cause.INVALID))
        elif (hold_s := self._parent.hold_s(self.flow, response)) is not None:
            yield from self._hold(event, hold_s)
        else:
            yield from super().state_wait_for_response_headers(event)

    def _hold(self, head: ResponseHeaders, seconds: float) -> layer.CommandGenerator[None]:
        self._held = Held(head)
        self.server_state = self.state_hold_response
        if seconds < inf:
            yield self._wait(seconds)

    def state_hold_response(self, event: BodyEvent) -> layer.CommandGenerator[None]:
        """The body of a held response."""
        if (held := self._held) is None:
            return
        match held.take(event):
            case Next.PASS:
                yield from self._pass_on(held)
            case Next.JUDGE:
                yield from self._judge(held)
            case Next.DRAIN:
                yield self._wait(DRAIN_S)

    def _wait(self, seconds: float) -> commands.RequestWakeup:
        self._stop_waiting()
        self._timer = commands.RequestWakeup(seconds)
        return self._timer

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._parent.silence(self._timer)
            self._timer = None

    def _waited(self, event: events.Wakeup) -> layer.CommandGenerator[None]:
        if (held := self._held) and event.command is self._timer:
            yield from self._judge(held) if held.failed else self._pass_on(held)

    def _judge(self, held: Held) -> layer.CommandGenerator[None]:
        self._stop_waiting()
        failure = _failure_of(held)
        question = yield from self._ask(failure, held.head.response)
        if question is None:
            return
        # An engine that is full may say so in the first event of a 200, which no client understands.
        full = held.error is not None and failure.status in NOT_TAKEN
        if not question.again and not full:
            yield from self._pass_on(held)
            return
        if not held.complete:
            yield from self._parent.abandon(self.context.server)
        if question.again:
            yield from self._send_again()
        else:
            yield from self._fail(question)

    def _pass_on(self, held: Held) -> layer.CommandGenerator[None]:
        self._stop_waiting()
        self._held = None
        yield from super().state_wait_for_response_headers(held.head)
        for event in held.body:
            yield from self.server_state(event)

    # -- failures -----------------------------------------------------------------------------------

    def handle_protocol_error(
        self, event: RequestProtocolError | ResponseProtocolError
    ) -> layer.CommandGenerator[None]:
        """The client has gone, or the endpoint has failed."""
        self._stop_waiting()
        if isinstance(event, RequestProtocolError) or not self._may_ask():
            yield from super().handle_protocol_error(event)
        elif self.server_state == self.state_consume_response_body:
            # The `responseheaders` of this response are told, so it cannot be replaced by another one.
            yield from self._parent.abandon(self.context.server)
            yield from self._fail(Question(self.flow, Failure(Cause.CLOSED)))
        elif self.server_state == self.state_hold_response and (held := self._held) and held.failed:
            yield from self._failed(_failure_of(held), held.head.response)
        elif self.server_state in (self.state_wait_for_response_headers, self.state_hold_response):
            cause = Cause.INVALID
            if _CLOSED in event.message:
                cause = Cause.STALE if self._is_stale() else Cause.CLOSED
            if cause is Cause.STALE:
                yield from self._parent.abandon_idle()
            yield from self._failed(Failure(cause))
        else:
            yield from super().handle_protocol_error(event)

    def _failed(
        self, failure: Failure, response: http.Response | None = None
    ) -> layer.CommandGenerator[None]:
        """The connection is of no more use, and there is no whole response to pass on."""
        yield from self._parent.abandon(self.context.server)
        question = yield from self._ask(failure, response)
        if question is None:
            return
        if question.again:
            yield from self._send_again()
        else:
            yield from self._fail(question)

    def _may_ask(self) -> bool:
        return (
            self.client_state == self.state_done
            and not self.flow.request.stream
            and self.context.server.alpn != b"h2"
        )

    def _is_stale(self) -> bool:
        """Whether a connection that ended had been idle, and had no time to do anything with the request."""
        waits = self.server_state == self.state_wait_for_response_headers
        return waits and self._reused and time.monotonic() - self._sent_at < _STALE_S

    def _ask(
        self, failure: Failure, response: http.Response | None = None
    ) -> layer.CommandGenerator[Question | None]:
        """The question with its answer; None if the client has gone and the flow has ended."""
        if (yield from self._stopped()):
            return None
        question = Question(self.flow, failure, response)
        yield RetryHook(question)
        return None if (yield from self._stopped()) else question

    def _stopped(self) -> layer.CommandGenerator[bool]:
        """End the flow if the client has left, or somebody killed it, while this layer waited."""
        if not (yield from self.check_killed(True)):
            return False
        server = self.context.server
        if server in self._parent.connections and server.alpn != b"h2":
            yield from self._parent.abandon(server)
        yield DropStream(self.stream_id)
        return True

    def _fail(self, question: Question) -> layer.CommandGenerator[None]:
        """Answer in the endpoints' place. For the addons this flow ends by `error`, with the answer in it."""
        error = error_of(question.failure)
        if error.retry_after_s is not None and question.retry_after_s is not None:
            error.retry_after_s = question.retry_after_s
        self.flow.response = response_of(error, self.flow.request)
        self.flow.error = flow.Error(error.message)
        yield HttpErrorHook(self.flow)
        if (yield from self.check_killed(False)):
            return
        self.flow.live = False
        self.client_state = self.server_state = self.state_errored
        response, client = self.flow.response, self.context.client
        content = response.raw_content
        yield SendHttp(ResponseHeaders(self.stream_id, response, not content), client)
        if content:
            yield SendHttp(ResponseData(self.stream_id, content), client)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)


def _failure_of(held: Held) -> Failure:
    """What a held response says, whether its body came to its end or not."""
    if held.error is None:
        return Failure(Cause.STATUS, status=held.head.response.status_code)
    return Failure(Cause.ERROR_EVENT, status=status_of(held.error))


def _cause_of(error: str) -> Cause:
    """Why a connection was not opened, by mitmproxy's words, which are those of Python's OSError."""
    if error == CONNECT_TIMEOUT:
        return Cause.CONNECT_TIMEOUT
    return Cause.NO_SOCKET if error.startswith(_OUR_OWN) else Cause.CONNECT
