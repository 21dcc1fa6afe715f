"""Another endpoint within the same flow: an HTTP layer that asks before it gives up.

mitmproxy answers a failed endpoint with an HTML page that names the address. Here, as long as the client has
seen nothing of a response, the addons are asked first, by the hook `ai_lb_retry`: they point the flow
somewhere else, or the client gets an error in the form of its API. The client's connection, the flow and its
`request` hook stay one, no further connection or hop is added, and streams still pass through as they come.

What is held back, so that there is something to decide: a response whose status is one to try again after,
with up to 64 KiB of its body, or 250 ms; and a stream, headers included, until its first event with data,
since engines whose queue is full answer 200 and say so in the first event, and one that dies before it can
still be replaced.

Exactly one of `response` and `error` is called for a flow, as without this layer: `response` for what an
endpoint answered, whatever its status; `error` where the answer is ours because the endpoints gave none.
`responseheaders` is called for the one response that is passed on.

Where this layer is not: replays (`-C`), which mitmproxy sends through a layer of its own; requests that are
streamed to the endpoint, as the body is not kept; and, once it is sent, a request over HTTP/2 to
the endpoint, as that connection also belongs to others.
"""

from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy import events, layer, mode_specs, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import ClientTLSLayer, modes

from addons.client_connection import ClientConnection
from addons.failover_connections import EndpointConnections, HoldS
from addons.failover_question import Question, RetryHook
from addons.failover_stream import FailoverStream

__all__ = ["FailoverLayer", "Question", "RetryHook", "next_layer"]


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
