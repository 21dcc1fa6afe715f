"""Active checks on real connections."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import certs

from lb_core.health import Checker, ChecksConfig, HealthConfig, State
from lb_core.types import Endpoint
from tests.core.test_health import Rig

FAST = ChecksConfig(timeout_s=0.2)

type Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(answer: bytes, heard: list[bytes] | None = None) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(request)
        writer.write(answer)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while True:
            writer.write(b"HTTP/1.1 200 " + b"x" * 65536)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield Endpoint("e0", "https" if tls else "http", "127.0.0.1", server.sockets[0].getsockname()[1])


def checker(config: ChecksConfig = FAST, *, tls: ssl.SSLContext | None = None) -> Checker:
    return Checker(config, tuple, lambda name, good: None, dice=lambda: 0.5, tls=tls)


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 204\r\n\r\n", True),
        (b"HTTP/1.1 399 \r\n\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False),
        (b"HTTP/1.1 503 Loading model\r\n\r\n", False),
        (b"HTTP/1.1 2000 OK\r\n\r\n", False),
        (b"200 OK\r\n\r\n", False),
        (b"\x00\xff\r\n", False),
        (b"", False),
    ],
)
async def test_the_status_line_decides(answer: bytes, good: bool) -> None:
    async with serving(answering(answer)) as endpoint:
        assert await checker().check(endpoint) is good


async def test_it_asks_for_the_path_under_the_endpoints_name() -> None:
    heard: list[bytes] = []
    async with serving(answering(b"HTTP/1.1 200 OK\r\n\r\n", heard)) as endpoint:
        await checker(ChecksConfig(path="/ready?deep=1")).check(endpoint)
    assert heard[0].startswith(b"GET /ready?deep=1 HTTP/1.1\r\nHost: 127.0.0.1:")


async def test_the_connection_is_closed_after_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = asyncio.Event()
    kept: list[object] = []
    connect = asyncio.open_connection

    async def keeping(*args: Any, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        kept.append(found := await connect(*args, **options))  # or the garbage collector would close it
        return found

    monkeypatch.setattr(asyncio, "open_connection", keeping)

    async def waiting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass
        writer.close()
        closed.set()

    async with serving(waiting) as endpoint, asyncio.timeout(2):
        checks = checker()
        assert await checks.check(endpoint)
        await closed.wait()


@pytest.mark.parametrize("handler", [silent, endless])
async def test_an_endpoint_that_says_nothing_or_never_stops_is_bad(handler: Handler) -> None:
    async with serving(handler) as endpoint, asyncio.timeout(2):
        assert not await checker().check(endpoint)


async def test_without_a_path_connecting_is_enough() -> None:
    async with serving(silent) as endpoint:
        assert await checker(ChecksConfig(path="")).check(endpoint)
    assert not await checker(ChecksConfig(path="")).check(endpoint)


@pytest.mark.parametrize("host", ["no..name", "x" * 64 + ".test", "127.0.0.1"])
async def test_what_cannot_be_reached_is_bad(host: str) -> None:
    assert not await checker().check(Endpoint("e0", "http", host, 1))


async def test_https_is_checked_with_the_given_trust(tmp_path: Path) -> None:
    store = certs.CertStore.from_store(tmp_path, "test", 2048)
    entry = store.get_cert("127.0.0.1", [])
    chain = tmp_path / "chain.pem"
    chain.write_bytes(entry.cert.to_pem() + (tmp_path / "test-ca.pem").read_bytes())
    key = tmp_path / "test-ca.pem"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, key)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "test-ca-cert.pem"))
    trusting.check_hostname = False
    async with serving(answering(b"HTTP/1.1 200 OK\r\n\r\n"), server) as endpoint:
        assert await checker(tls=trusting).check(endpoint)
        assert not await checker().check(endpoint), "unknown issuer"


async def test_a_check_over_https_makes_no_trust_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes 20 to 50 ms of the event loop."""
    checks, made = checker(), 0
    make = ssl.SSLContext.__new__

    def counted(cls: type[ssl.SSLContext], *args: Any, **options: Any) -> ssl.SSLContext:
        nonlocal made
        made += 1
        return make(cls, *args, **options)

    monkeypatch.setattr(ssl.SSLContext, "__new__", counted)
    async with serving(silent) as endpoint:
        assert not await checks.check(replace(endpoint, scheme="https"))
    assert not made


async def test_at_most_64_are_checked_at_the_same_time() -> None:
    open_now, most, full = 0, 0, asyncio.Event()

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        if open_now == 64:
            full.set()
        await full.wait()
        await reader.readuntil(b"\r\n\r\n")
        open_now -= 1
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    results: list[bool] = []
    async with serving(counting) as endpoint:
        many = Checker(
            ChecksConfig(timeout_s=10),
            lambda: [endpoint] * 200,
            lambda name, good: results.append(good),
            dice=lambda: 0.5,
        )
        await many.round()
    assert results == [True] * 200
    assert most == 64


async def test_rounds_go_on_and_report_until_cancelled() -> None:
    rig = Rig(2, HealthConfig(checks=FAST))
    out = asyncio.Event()

    def report(name: str, good: bool) -> None:
        rig.health.checked(name, good)
        if rig.health.states()["e0"] is State.UNHEALTHY:
            out.set()

    gone = Endpoint("e0", "http", "127.0.0.1", 1)
    config = ChecksConfig(interval_s=0.1)
    running = asyncio.create_task(Checker(config, lambda: [gone], report, dice=lambda: 0.0).run())
    async with asyncio.timeout(5):
        await out.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert rig.available() == ["e1"]
