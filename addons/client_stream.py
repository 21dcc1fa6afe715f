"""One request as its client sees it, where mitmproxy would let an endpoint or a response spoil it."""

from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import HttpStream

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
