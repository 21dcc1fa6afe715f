"""One connection to a Redis server, on which calls do not wait for each other's replies.

Measured beside redis-py's pool, on two cores: one call at a time 29 µs of CPU instead of 62, fifty at a
time 7 µs instead of 50. Replies come in the order of the calls, so a release written after an acquire is
also carried out after it, which is what a request that is cancelled relies on.
"""

import asyncio
import ssl
from collections import deque
from typing import Any

import hiredis

from lb_core.errors import AiLbError


class ServerAway(AiLbError):
    """The server cannot be asked now, or did not answer in time; what became of the call is unknown."""


class Refused(AiLbError):
    """The server answered with an error. `code` is its first word, such as NOSCRIPT or OOM."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.split(" ", 1)[0]


type Reply = Any
"""What hiredis makes of a reply: bytes, int, None or a list of these."""
type Argument = str | bytes | int


class Wire(asyncio.Protocol):
    """Writes calls, hands out replies. `lost` is done when the connection is gone."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=Refused)
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.heard_at = self._loop.time()

    @classmethod
    async def connect(cls, host: str, port: int, tls: ssl.SSLContext | None, *, server_name: str) -> "Wire":
        """Open a connection; TLS asks for `server_name`. Raises OSError (`ssl.SSLError` is one)."""
        name = server_name if tls else None
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(cls, host, port, ssl=tls, server_hostname=name)
        return wire

    def call(self, *command: Argument) -> asyncio.Future[Reply]:
        """Send a command. The future gives its reply or raises Refused or ServerAway."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self._transport is None or self.lost.done():
            future.set_exception(ServerAway("the connection is closed"))
            return future
        self._waiting.append(future)
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub means any length
        return future

    @property
    def silent_s(self) -> float:
        """For how long a reply has been due without a byte coming."""
        return self._loop.time() - self.heard_at if self._waiting else 0.0

    def abort(self) -> None:
        """Drop the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what create_connection gives
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard_at = self._loop.time()
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                future = self._waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, Refused):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()  # not a Redis server, or one that answers what nobody asked

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.lost.set_result(None)
        for future in self._waiting:
            if not future.done():
                future.set_exception(ServerAway("the connection was lost"))
        self._waiting.clear()
