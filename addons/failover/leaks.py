"""Sockets that mitmproxy forgets.

mitmproxy closes a connection by cancelling its task, and the task closes the socket when it is told so in the
middle of a read or a write. Told while it waits for its turn to report what it read, which happens
about once in a thousand aborted requests, it ends at once: the socket stays open, and the endpoint goes on
generating for nobody. Found by the chaos test.
"""

import asyncio

from mitmproxy import ctx
from mitmproxy.connection import Client
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

_LATER_S = 1.0
"""Seconds after its client left in which a connection handler has ended all its tasks."""


def server_disconnected(data: ServerConnectionHookData) -> None:
    """Close the socket if it is still open; call it from the hook of this name."""
    handler = _handler(data.client)
    # Where all went well, the entry is gone by now.
    io = None if handler is None else handler.transports.pop(data.server, None)
    if io is not None and io.writer is not None:
        io.writer.close()


def client_disconnected(client: Client) -> None:
    """Close, a little later, the sockets that had just been connected; call it from the hook of this name."""
    handler = _handler(client)
    if handler is not None and handler.transports:
        asyncio.get_running_loop().call_later(_LATER_S, _close_all, handler)


def _close_all(handler: ConnectionHandler) -> None:
    for io in handler.transports.values():
        if io.writer is not None and (io.handler is None or io.handler.done()):
            io.writer.close()


def _handler(client: Client) -> ConnectionHandler | None:
    handler: ConnectionHandler | None = ctx.master.addons.get("proxyserver").connections.get(client.id)
    return handler
