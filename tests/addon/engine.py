"""An endpoint that does, byte for byte, what a test tells it to."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SSE_EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
SSE_END = b"0\r\n\r\n"


def chunk(data: bytes = SSE_EVENT) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


type Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What to do with a connection after the head of a request and its body of known length were read."""


class ScriptedEngine:
    """Reads a request, then runs the script, on each connection. `heads` are the requests as they came."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.open = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.endpoint = {"name": "scripted", "url": f"http://127.0.0.1:{self.port}"}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.heads.append(head)
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                self.bodies.append(await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side is gone, which is how most of these tests end
        finally:
            self.open -= 1
            writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A short answer at once."""
    writer.write(OK)


async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Three events and a clean end."""
    writer.write(SSE_HEAD + chunk() * 3 + SSE_END)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Nothing, until the other side goes."""
    await reader.read()


async def hang_mid_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One event, then nothing until the other side goes."""
    writer.write(SSE_HEAD + chunk())
    await reader.read()


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The end, instead of an answer."""
    writer.close()


async def close_mid_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One event and the end, without the chunk that ends the body."""
    writer.write(SSE_HEAD + chunk())
    await writer.drain()
    await asyncio.sleep(0.05)  # so that the event is on its way before the end
    writer.close()


async def reset_mid_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One event and a TCP reset."""
    writer.write(SSE_HEAD + chunk())
    await writer.drain()
    await asyncio.sleep(0.05)
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def bad_chunk_mid_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One event, and then a chunk whose size is none."""
    writer.write(SSE_HEAD + chunk() + b"what\r\n")
    await reader.read()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Not HTTP."""
    writer.write(b"\x00\x01 what is this\r\n\r\n")
