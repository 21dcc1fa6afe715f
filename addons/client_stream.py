"""One request as its client sees it, where mitmproxy would let an endpoint or a response spoil it."""

from mitmproxy.net.http.http1 import connection_close, expected_http_body_size
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import HttpStream
from mitmproxy.proxy.layers.http._events import ResponseHeaders

BUFFERED = 1 << 20
"""Bytes up to which a response of known length is kept whole, so that mitmweb can show it."""


class ClientStream(HttpStream):
    """mitmproxy's stream of one request."""

    def check_body_size(self, request: bool) -> layer.CommandGenerator[bool]:
        """Hold requests alone to `body_size_limit`.

        mitmproxy holds responses to it too, also those that it passes on as they come. Only one that is kept
        although it is long, after a fault in the addon, is still stopped there.
        """
        if request or len(self.response_body_buf) > BUFFERED:
            return (yield from super().check_body_size(request))
        return False

    def state_wait_for_response_headers(self, event: ResponseHeaders) -> layer.CommandGenerator[None]:
        """The headers of the response that the client gets."""
        yield from super().state_wait_for_response_headers(self._kept_open(event))

    def _kept_open(self, event: ResponseHeaders) -> ResponseHeaders:
        """Keep the client's connection although the endpoint ends its own.

        mitmproxy closes both by what one response says. It must be so where the end of the connection is the
        end of the body, and where the client asked for it.
        """
        request, response = self.flow.request, event.response
        said = [token.strip() for token in response.headers.get("connection", "").lower().split(",")]
        closes = "close" in said or (response.http_version == "HTTP/1.0" and "keep-alive" not in said)
        if (
            not closes
            or connection_close(request.http_version, request.headers)
            or expected_http_body_size(request, response) == -1
        ):
            return event
        response.headers["connection"] = "close"  # in lower case, or mitmproxy would not see it
        response = response.copy()
        response.http_version = "HTTP/1.1"
        if others := [token for token in said if token not in ("", "close")]:
            response.headers["connection"] = ", ".join(others)
        else:
            del response.headers["connection"]
        return ResponseHeaders(event.stream_id, response, event.end_stream)
