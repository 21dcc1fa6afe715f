"""A TCP proxy that does to a connection what networks and servers do, under the control of a test."""

import asyncio
import enum
import random
import socket
import ssl
import struct
from typing import Self


class Fault(enum.StrEnum):
    """What happens to bytes and connections from now on."""

    NONE = "none"
    REFUSE = "refuse"
    """New connections are refused; those that exist are reset."""
    BLACK_HOLE = "black_hole"
    """Connections are accepted, bytes vanish in both directions."""
    FREEZE = "freeze"
    """Bytes are kept and come through once the fault is over."""


class FaultProxy:
    """Listens on a free loopback port and passes bytes on to `target`; may be used as a context manager."""

    def __init__(self, target: tuple[str, int], *, tls: ssl.SSLContext | None = None, seed: int = 0) -> None:
        self.target = target
        self.latency_s = 0.0
        self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.port = 0
        self._tls = tls
        self._random = random.Random(seed)
        self._fault = Fault.NONE
        self._passing = asyncio.Event()
        self._passing.set()
        self._cut_after: int | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._passing.set()
        self.reset()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def set(self, fault: Fault) -> None:
        """Begin a fault; `Fault.NONE` ends it."""
        self._fault = fault
        (self._passing.clear if fault is Fault.FREEZE else self._passing.set)()
        if fault is Fault.REFUSE and self._server is not None:
            self._server.close()
            self._server = None
            self.reset()
        elif fault is not Fault.REFUSE and self._server is None:
            await self._listen()

    def reset(self) -> None:
        """Reset every connection that is open (RST)."""
        for writer in tuple(self._writers):
            if (sock := writer.get_extra_info("socket")) is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def cut_after(self, count: int) -> None:
        """Reset the connections when so many more bytes have come from the target."""
        self._cut_after = count

    def switch(self, target: tuple[str, int]) -> None:
        """Lead to another target from now on, and reset what leads to the old one."""
        self.target = target
        self.reset()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            their_reader, their_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(their_writer)
        for pump in (
            self._pump(reader, their_writer, answers=False),
            self._pump(their_reader, writer, answers=True),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        """Pass bytes on in one direction. Latency applies to answers, and does not limit throughput."""
        loop = asyncio.get_running_loop()
        due = 0.0
        try:
            while data := await reader.read(65536):
                await self._passing.wait()
                if self._fault is Fault.BLACK_HOLE:
                    continue
                if answers:
                    delay = self.latency_s + self._random.uniform(0, self.jitter_s)
                    due = max(due, loop.time() + delay)
                    await asyncio.sleep(due - loop.time() if delay else 0)
                    data = self._until_cut(data)
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                writer.write(data)
                await writer.drain()
                if answers and self._cut_after == 0:
                    self._cut_after = None
                    self.reset()
        except OSError:
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.close()

    def _until_cut(self, data: bytes) -> bytes:
        if self._cut_after is None:
            return data
        data = data[: self._cut_after]
        self._cut_after -= len(data)
        return data
