"""Time-outs that mitmproxy does not have: on connecting, on the first byte, on silence within a stream.

Where there is a connection it is aborted, which mitmproxy takes for closed by the endpoint: before the
response begins, that is a failure to be asked about; within a response, the client's connection is closed
too, without the end of the body, so that the client knows it for cut.
"""

import asyncio
import time
from collections.abc import Callable
from math import inf

from mitmproxy import ctx, http
from mitmproxy.connection import Client, Connection, Server
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

CONNECT_TIMEOUT = "connect timeout"
"""The error of a connection that was given up; mitmproxy hands on what a task was cancelled with."""

TLS_TIMEOUT_S = 2.0
"""Seconds for a TLS handshake."""

_STEPS = 10
"""A time-out on connecting is counted in so many steps, to each of which the event loop has to come: when
this process has too much to do, the answers of good endpoints lie unread for longer than they took."""

_AGAIN_S = 0.1
"""When to look again at what cannot be ended yet."""


class ConnectTimeouts:
    """Gives up connections that take too long; call its methods from the hooks of the same names.

    `seconds` gives the time-out of a connection. The hooks must not wait for anything: mitmproxy
    would forget the flow if its client left meanwhile.
    """

    def __init__(self, seconds: Callable[[ServerConnectionHookData], float]) -> None:
        self._seconds = seconds
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """A connection will be opened."""
        self._look_in(self._seconds(data), self._connecting, data)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """TCP is connected; TLS, where it is wanted, follows."""
        self._stop(data.server)
        if data.server.tls:
            self._look_in(TLS_TIMEOUT_S, self._shaking_hands, data)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """It was not opened."""
        self._stop(data.server)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """It is closed."""
        self._stop(data.server)

    def _look_in(
        self,
        seconds: float,
        look: Callable[[ServerConnectionHookData], None],
        data: ServerConnectionHookData,
    ) -> None:
        step_s = seconds / _STEPS

        def step(left: int) -> None:
            then = (look, data) if left == 1 else (step, left - 1)
            self._timers[data.server.id] = asyncio.get_running_loop().call_later(step_s, *then)

        step(_STEPS)

    def _stop(self, server: Server) -> None:
        timer = self._timers.pop(server.id, None)
        if timer is not None:
            timer.cancel()

    def _connecting(self, data: ServerConnectionHookData) -> None:
        self._stop(data.server)
        io = _io(data.client, data.server)
        if io is None or io.handler is None or io.writer is not None:
            return
        started = data.server.timestamp_start
        if started is None:
            # It waits for another one to the same address to close. Cancelled here, the flow would never end.
            self._look_in(_AGAIN_S, self._connecting, data)
            return
        left = self._seconds(data) - (time.time() - started)
        if left > 0:
            self._look_in(left, self._connecting, data)
        else:
            io.handler.cancel(CONNECT_TIMEOUT)

    def _shaking_hands(self, data: ServerConnectionHookData) -> None:
        self._stop(data.server)
        io = _io(data.client, data.server)
        if not data.server.tls_established and io is not None:
            _abort(io)


class FirstByteTimeout:
    """Ends a flow that has no content in time. `stop` it when the first content comes, and at the end.

    Before it ends the flow, `fired` is set: the failure that follows is no failure of the endpoint.
    """

    def __init__(self, flow: http.HTTPFlow, seconds: float) -> None:
        self.fired = False
        self._flow = flow
        self._timer = asyncio.get_running_loop().call_later(seconds, self._fire)

    def stop(self) -> None:
        """Do nothing from now on."""
        self._timer.cancel()

    def _fire(self) -> None:
        self.fired = True
        if self._flow.live and not cut(
            self._flow
        ):  # it connects, or the addons are asked about another attempt
            self._timer = asyncio.get_running_loop().call_later(_AGAIN_S, self._fire)


class StreamWatch:
    """Tells of a stream's progress, and ends the stream when there is none. `stop` it at the end of the flow.

    `events` gives a number that grows with each event that counts, None before the first. It is looked at
    now and then instead of being told of each chunk, so a stream lives up to 5 s, or a quarter of `idle_s`,
    longer than that. `idle_s` None ends no stream. While the client does not take what came, nothing is read
    from the endpoint, which is not to blame then.
    """

    def __init__(
        self,
        flow: http.HTTPFlow,
        events: Callable[[], int | None],
        *,
        idle_s: float | None,
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        self._flow = flow
        self._events = events
        self._idle_s = inf if idle_s is None else idle_s
        self._progressed = progressed
        self._seen: int | None = None
        self._loop = asyncio.get_running_loop()
        self._changed = self._loop.time()
        self._pause = min(5.0, self._idle_s / 4)
        self._timer = self._loop.call_later(self._pause, self._look)

    def stop(self) -> None:
        """Do nothing from now on."""
        self._timer.cancel()

    def _look(self) -> None:
        if not self._flow.live:
            return
        now, events = self._loop.time(), self._events()
        if events is None or events != self._seen or _is_held_up(self._flow):
            if events is not None and events != self._seen:
                self._progressed()
            self._seen, self._changed = events, now
        elif now - self._changed >= self._idle_s and cut(self._flow):
            return
        self._timer = self._loop.call_later(self._pause, self._look)


def cut(flow: http.HTTPFlow) -> bool:
    """Close the flow's connection to its endpoint; False if it has none now."""
    io = _io(flow.client_conn, flow.server_conn)
    return io is not None and _abort(io)


def _is_held_up(flow: http.HTTPFlow) -> bool:
    """Whether so much waits for the flow's client that mitmproxy reads nothing from its endpoint."""
    io = _io(flow.client_conn, flow.client_conn)
    if io is None or not isinstance(io.writer, asyncio.StreamWriter):
        return False
    low, _ = io.writer.transport.get_write_buffer_limits()
    return io.writer.transport.get_write_buffer_size() > low


def _abort(io: ConnectionIO) -> bool:
    # Not by cancelling the task, which may be in a state in which it would end without a word.
    if not isinstance(io.writer, asyncio.StreamWriter):
        return False
    io.writer.transport.abort()
    return True


def _io(client: Client, connection: Connection) -> ConnectionIO | None:
    """mitmproxy's end of a connection; None once it is closed, and for replays."""
    handler = ctx.master.addons.get("proxyserver").connections.get(client.id)
    return None if handler is None else handler.transports.get(connection)
