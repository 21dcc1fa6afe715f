"""A port of 127.0.0.1 that can stop listening and come back, and connections that can be cut."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from addons.sim.config import HOST

_KEEP_ALIVE_S = 5.0  # uvicorn's, so vLLM's
_MAX_BODY = 256 << 20
_BACKLOG = 1024


class Listener:
    """Serves HTTP with `handler`, which is cancelled when its client leaves. Port 0 becomes a free one."""

    def __init__(
        self, port: int, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> None:
        self.port = port
        self._handler = handler
        self._busy: set[asyncio.Transport] = set()
        self._runner: web.ServerRunner | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        self._bind()
        server = web.Server(
            self._handle,
            request_factory=self._request,
            handler_cancellation=True,
            keepalive_timeout=_KEEP_ALIVE_S,
            access_log=None,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.2)
        await self._runner.setup()
        await self.accept()

    async def accept(self) -> None:
        """Listen (again). Does nothing while it listens, or after `close`."""
        if self._server is not None or self._socket is None:
            return
        if self._runner is None or self._runner.server is None:
            return
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._runner.server, sock=self._socket, backlog=_BACKLOG)

    def refuse(self, *, cut: bool = False) -> None:
        """Refuse connections until `accept`; close the idle ones and, with `cut`, reset those at work."""
        if self._server is None or self._runner is None or self._runner.server is None:
            return
        self.close()
        # Bound but not listening: connections are refused, and no other program can take the port meanwhile.
        self._bind()
        for connection in self._runner.server.connections:
            transport = connection.transport
            if transport is None:
                continue
            if cut:
                send_reset(transport)
            elif transport in self._busy:
                connection.close()  # when its request is answered
            else:
                transport.close()

    def close(self) -> None:
        """Free the port at once; connections go on."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        self._server = self._socket = None

    async def stop(self) -> None:
        """Free the port and end all connections."""
        self.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _bind(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, self.port))
        except OSError:
            sock.close()
            raise
        self.port = sock.getsockname()[1]
        self._socket = sock

    def _request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if transport is None:
            return await self._handler(request)
        self._busy.add(transport)
        try:
            return await self._handler(request)
        finally:
            self._busy.discard(transport)


def send_reset(transport: asyncio.Transport) -> None:
    """End a connection with TCP RST."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        # Lingering for zero seconds: close() sends RST instead of FIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
