"""The layer that stands between a client and the endpoints that are tried for it."""

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import events, layer, mode_specs, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer, modes

from addons.client_connection import ClientConnection
from addons.failover.connections import EndpointConnections, HoldS
from addons.failover.stream import FailoverStream


def next_layer(nextlayer: layer.NextLayer, *, hold_s: HoldS) -> None:
    """Serve the clients of a `reverse:http:` listener by the layer below; for the hook of this name."""
    context = nextlayer.context
    mode = context.client.proxy_mode
    if nextlayer.layer or len(context.layers) != 1 or not isinstance(context.layers[0], modes.ReverseProxy):
        return
    if not isinstance(mode, mode_specs.ReverseMode) or mode.scheme != "http":
        return
    stack = tunnel.LayerStack()
    if starts_like_tls_record(nextlayer.data_client()):
        stack /= ClientTLSLayer(context)
    stack /= FailoverLayer(context, hold_s)
    nextlayer.layer = stack[0]


class FailoverLayer(EndpointConnections):
    """mitmproxy's HTTP layer of one client connection, with streams that ask."""

    def __init__(self, context: Context, hold_s: HoldS) -> None:
        super().__init__(context, hold_s)
        self._handle_event = self._start  # type: ignore[method-assign]

    def _start(self, event: events.Event) -> layer.CommandGenerator[None]:
        client = self.context.client
        if client.alpn != b"h2":
            self.connections[client] = ClientConnection(self.context.fork())
        del self._handle_event  # the class's own from now on
        yield from self._handle_event(event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        """Begin a request."""
        self.forget_closed()
        stream = self.streams[stream_id] = FailoverStream(self, stream_id)
        yield from self.event_to_child(stream, events.Start())
