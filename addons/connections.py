"""The proxy's client connections as a whole: how it ends."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

from mitmproxy import ctx
from mitmproxy.proxy.server import ConnectionHandler

_CLOSE_S = 2.0
"""How long connections may take to close; then the process ends anyway."""
_POLL_S = 0.01

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_sigterm(ask: Callable[[], None]) -> None:
    """Have `ask` called before mitmproxy ends because of a SIGTERM. Ctrl-C goes on to end it at once."""

    def received() -> None:
        ask()
        ctx.master.shutdown()

    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, received)


async def drain(idle: Callable[[], bool], *, within_s: float) -> None:
    """Stop listening, and wait until `idle()`, or `within_s` seconds, or for another signal."""
    await ctx.master.addons.get("proxyserver").servers.update([])
    with _another_signal() as asked:
        for _ in range(round(within_s / _POLL_S)):
            if idle() or asked():
                break
            await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def _another_signal() -> Iterator[Callable[[], bool]]:
    received: list[bool] = []
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):
        for number in _SIGNALS:
            loop.add_signal_handler(number, received.append, True)
    yield lambda: bool(received)


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
