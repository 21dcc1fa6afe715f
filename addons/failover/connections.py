"""The connections to endpoints that belong to one client connection, as a failover needs them."""

from collections.abc import Callable

from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

type HoldS = Callable[[http.HTTPFlow, http.Response], float | None]
"""Seconds for which a response of this flow, of which the headers came, is held back; None is not at all,
inf as long as it takes. It is either a stream with status 200 or an error."""

_MANY = 16
"""Connections above which the closed ones are taken out of the list."""


class EndpointConnections(HttpLayer):
    """mitmproxy's HTTP layer, whose connections can be given up."""

    def __init__(self, context: Context, hold_s: HoldS) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.hold_s = hold_s
        self._sink = _Sink(context.fork())

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
        self.connections[connection] = self._sink
        if connection.state is not ConnectionState.CLOSED:
            yield commands.CloseConnection(connection)

    def abandon_idle(self) -> layer.CommandGenerator[None]:
        """Close those that nobody uses: they were idle as long as one that was found closed."""
        used = {stream.context.server for stream in self.streams.values()}
        for connection in tuple(self.connections):
            if (
                isinstance(connection, Server)
                and connection.connected
                and connection not in used
                and connection not in self.waiting_for_establishment
            ):
                yield from self.abandon(connection)

    def silence(self, timer: commands.RequestWakeup) -> None:
        """Let nobody hear a timer. mitmproxy cannot stop it, and would keep the request until then."""
        if timer in self.command_sources:
            self.command_sources[timer] = self._sink

    def forget_closed(self) -> None:
        """Take closed connections out when they are many: mitmproxy keeps all, and walks them per request."""
        if len(self.connections) <= _MANY:
            return
        used = {stream.context.server for stream in self.streams.values()}
        for connection in tuple(self.connections):
            # The end is noted after the last event of a connection, so none will miss its layer.
            if isinstance(connection, Server) and connection.timestamp_end and connection not in used:
                del self.connections[connection]


class _Sink(layer.Layer):
    """Stands where the layer of an abandoned connection was, or a request that waits for nothing any more."""

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        yield from ()
