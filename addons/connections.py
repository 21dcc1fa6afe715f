"""The proxy's client connections as a whole."""

import asyncio

from mitmproxy import ctx
from mitmproxy.proxy.server import ConnectionHandler

_CLOSE_S = 2.0
"""How long connections may take to close; then the process ends anyway."""
_POLL_S = 0.01


async def close_all() -> None:
    """Stop listening, close every client connection, and wait until their hooks have run.

    Left open, they would be cancelled from outside when the event loop ends, which asyncio reports
    as a crash of each one (fixed in later releases of Python 3.12).
    """
    proxyserver = ctx.master.addons.get("proxyserver")
    await proxyserver.servers.update([])
    handlers: list[ConnectionHandler] = list(proxyserver.connections.values())
    for handler in handlers:
        transport = handler.transports.get(handler.client)
        if transport is not None and transport.handler is not None:
            transport.handler.cancel("the proxy ends")
    for _ in range(round(_CLOSE_S / _POLL_S)):
        if not proxyserver.connections:
            break
        await asyncio.sleep(_POLL_S)
