"""A server with one page that does what a test tells it to."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from mitmproxy import certs

from lb_core.engines.scraper import Target

PAGE = b"vllm:num_requests_waiting 3\nvllm:num_requests_running 1\n"

type Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes, head: str = "200 OK", *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {head}", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def says(answer: bytes) -> Answer:
    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return reply


def drips(opening: bytes, piece: bytes, wait_s: float) -> Answer:
    """`opening`, then `piece` again and again, until the client leaves."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(opening)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(wait_s)

    return reply


async def hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Until the client leaves."""
    await reader.read()


def private_tls(folder: Path) -> ssl.SSLContext:
    """For a server on 127.0.0.1, by a CA of its own: `private-ca-cert.pem` in `folder`."""
    store = certs.CertStore.from_store(folder, "private", 2048)
    own = store.get_cert("127.0.0.1", [x509.IPAddress(ip_address("127.0.0.1"))])
    chain = folder / "chain.pem"
    chain.write_bytes(own.cert.to_pem() + (folder / "private-ca.pem").read_bytes())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain)
    return tls


class Site:
    """A server with one page, and what it was asked."""

    def __init__(self, answer: Answer, *, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self._tls = tls
        self.asked: list[tuple[float, str]] = []
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def open(self) -> int:
        return len(self._writers)

    async def __aenter__(self) -> "Site":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def target(self, name: str, **options: Any) -> Target:
        return Target(name, f"http://127.0.0.1:{self.port}/metrics", **{"interval_s": 0.1} | options)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.append((time.monotonic(), head.decode()))
                await self.answer(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()
