"""What a client gets through mitmproxy's layer that mitmproxy alone would not give it."""

import asyncio
import tracemalloc
from pathlib import Path

import pytest

from tests.addon import engine as engines
from tests.addon.engine import Script
from tests.addon.failover_rig import status
from tests.addon.test_ai_lb import Keeper
from tests.addon.test_endings import rig

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter

FILE = b"GET /v1/files/x/content HTTP/1.1\r\nhost: api.test\r\n\r\n"


def body_of(size: int, *, chunked: bool) -> Script:
    """Answer a body of so many bytes, in pieces of 64 KiB."""

    async def script(reader: Reader, writer: Writer) -> None:
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % size
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n%s\r\n\r\n" % framing)
        for left in range(size, 0, -65_536):
            piece = b"x" * min(65_536, left)
            writer.write(engines.chunk(piece) if chunked else piece)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")

    return script


# -- long responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
async def test_a_response_longer_than_requests_may_be_is_passed_on(tmp_path: Path, chunked: bool) -> None:
    size = 2_000_000
    async with rig(tmp_path, body_of(size, chunked=chunked), body_size_limit="10k") as its:
        answer = await its.ask(FILE)
        assert status(answer) == 200
        assert answer.count(b"x") >= size
        await its.settled("complete")


async def test_a_short_response_over_the_limit_of_requests_is_passed_on_too(tmp_path: Path) -> None:
    keeper = Keeper()
    async with rig(tmp_path, body_of(100, chunked=False), keeper, body_size_limit="50") as its:
        answer = await its.ask(FILE)
        assert answer.endswith(b"x" * 100)
        await its.settled("complete")
        assert keeper.flows[0].response is not None
        assert keeper.flows[0].response.raw_content == b"x" * 100


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
async def test_a_long_response_is_not_kept_in_memory(tmp_path: Path, chunked: bool) -> None:
    size = 32 << 20
    async with rig(tmp_path, body_of(size, chunked=chunked), body_size_limit="1m") as its:
        reader, writer = await its.connect()
        tracemalloc.start()
        try:
            writer.write(FILE)
            got = 0
            async with asyncio.timeout(60):
                while got < size and (piece := await reader.read(65_536)):
                    got += len(piece)
            assert got >= size
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            writer.close()
        assert peak < 4 << 20


# -- kept connections ---------------------------------------------------------------------------------


CLOSES: dict[str, bytes] = {
    "close": b"HTTP/1.1 200 OK\r\nConnection: Close, X-P\r\nx-p: 1\r\ncontent-length: 2\r\n\r\n{}",
    "close, chunked": b"HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a stream": engines.SSE_HEAD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    + engines.chunk() * 2
    + engines.SSE_END,
    "a refusal": b"HTTP/1.1 503 X\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
}


async def whole(reader: Reader) -> bytes:
    """One response, chunked or of known length."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"transfer-encoding" in head.lower():
        return head + await reader.readuntil(b"0\r\n\r\n")
    return head + await reader.readexactly(2)


@pytest.mark.parametrize("answer", CLOSES)
async def test_an_endpoint_that_closes_its_connection_does_not_close_the_client_s(
    tmp_path: Path, answer: str
) -> None:
    connections = 0

    async def closes(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        writer.write(CLOSES[answer])
        await writer.drain()
        writer.close()

    async with rig(tmp_path, closes) as its:
        reader, writer = await its.connect()
        async with asyncio.timeout(10):
            for _ in range(5):
                writer.write(FILE)
                got = await whole(reader)
                assert got.startswith(b"HTTP/1.1 ")
                assert b"connection" not in got.lower()
                assert b"x-p:" not in got.lower()
        writer.close()
        assert connections == 5
        await its.settled(*["complete"] * 5)


@pytest.mark.parametrize(
    ("asked", "body"),
    [(b"connection: close\r\n", b"content-length: 2\r\n\r\n{}"), (b"", b"\r\n{}")],
    ids=["the client wants it", "nothing else ends the body"],
)
async def test_the_client_s_connection_is_closed_where_it_must_be(
    tmp_path: Path, asked: bytes, body: bytes
) -> None:
    async def closes(reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + body)
        await writer.drain()
        writer.close()

    async with rig(tmp_path, closes) as its:
        reader, writer = await its.connect()
        writer.write(FILE.replace(b"\r\n\r\n", b"\r\n" + asked + b"\r\n"))
        async with asyncio.timeout(10):
            got = await reader.read()
        assert b"connection: close" in got
        assert got.endswith(b"{}")
        writer.close()
        await its.settled("complete")
