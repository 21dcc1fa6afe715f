"""Requests that want something else than an answer: nobody but a configured engine is ever connected to."""

import asyncio
import contextlib
import random
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import pytest

from tests.system.balancer import Balancer

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%scontent-length: 2\r\n\r\n{}"
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
REQUEST_LINE = re.compile(rb"[^\x00-\x20\x7f]+ (/[^\x00-\x20\x7f]*|\*) HTTP/1\.[01]")
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
NUMBER = re.compile(rb"[?&]n=([0-9]+)")


class Engine:
    """Answers 200 to what is surely one request, and writes down all that comes."""

    def __init__(self, headers: bytes = b"") -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.strays: list[bytes] = []
        """What came and is no request."""
        self._answer = OK % headers

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.authority = f"127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                self.bodies.append(await self._body(head, reader))
                writer.write(self._answer)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self.strays.append(error.partial)
        except (ValueError, asyncio.LimitOverrunError) as error:
            self.strays.append(str(error).encode())
        except ConnectionError:
            return  # the balancer is gone
        finally:
            writer.close()

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        fields = headers_of(head)
        if b"transfer-encoding" in fields:  # goes before a length, as in most servers
            body = b""
            while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                body += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
            await reader.readuntil(b"\r\n")
            return body
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))


def headers_of(head: bytes) -> dict[bytes, bytes]:
    """Names in lower case; of several with one name, the last."""
    pairs = (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


def doubts(head: bytes, authority: str) -> list[str]:
    """Why two servers might read this head as different requests, or as one for somebody else."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    names = [line.partition(b":")[0].lower() for line in lines]
    fields = headers_of(head)
    found = {
        "request line": not REQUEST_LINE.fullmatch(first),
        "control character": any(CONTROL.search(line) for line in (first, *lines)),
        "folded line": any(line[:1] in (b" ", b"\t") for line in lines),
        "header name": any(not TOKEN.fullmatch(name) for name in names if name[:1] not in (b" ", b"\t")),
        "two lengths": names.count(b"content-length") + names.count(b"transfer-encoding") > 1,
        "length": not fields.get(b"content-length", b"0").isdigit(),
        "encoding": not fields.get(b"transfer-encoding", b"chunked").lower().endswith(b"chunked"),
        "host": names.count(b"host") != 1 or fields[b"host"] != authority.encode(),
        "our own header": any(name.startswith(b"x-ai-lb-") for name in names),
        "hop by hop": bool({b"proxy-authorization", b"proxy-connection", b"keep-alive"} & set(names)),
        "HTTP/2": fields.get(b"upgrade", b"").lower() == b"h2c" or b"http2-settings" in names,
    }
    return [doubt for doubt, is_there in found.items() if is_there]


class Bystander:
    """A port that is in no configuration; `visits` are the connections to it."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.visits = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._visited, self._host, 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.authority = f"{self._host}:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


def config(*engines: Engine) -> dict[str, Any]:
    endpoints = [{"name": f"e{n}", "url": f"http://{engine.authority}"} for n, engine in enumerate(engines)]
    return {"clusters": {"c": {"endpoints": endpoints, "metrics": False}}, "expose_decision": True}


@contextlib.asynccontextmanager
async def served(folder: Path, settings: dict[str, Any], *arguments: str) -> AsyncIterator[Balancer]:
    """The balancer before engines that live in this test's own loop, which must not be blocked."""
    balancer = Balancer(folder, settings, *arguments)
    await asyncio.to_thread(balancer.start)
    try:
        yield balancer
    finally:
        await asyncio.to_thread(balancer.stop)


async def send(port: int, raw: bytes, *, quiet_s: float = 0.25, tls: ssl.SSLContext | None = None) -> bytes:
    """Send, and read until the other side closes or has been quiet for a while."""
    named = "127.0.0.2" if tls else None
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=named)
    got = b""
    try:
        writer.write(raw)
        while True:
            async with asyncio.timeout(quiet_s if got else 4 * quiet_s):
                piece = await reader.read(65536)
            if not piece:
                return got
            got += piece
    except (TimeoutError, ConnectionError):
        return got
    finally:
        writer.close()


# -- the corpus ----------------------------------------------------------------------------------------


def targets(there: str, engine: str, number: int) -> list[bytes]:
    """Request targets; `there` is where nobody may connect to."""
    port = there.rpartition(":")[2]
    forms = [
        f"http://{there}/v1/models?n=%",
        f"HTTP://{there}/v1/models?n=%",
        f"https://{there}/v1/models?n=%",
        f"ftp://{there}/x?n=%",
        f"http://{there}",
        f"http://{engine}@{there}/x?n=%",
        f"http://{there}@{engine}/x?n=%",
        f"http://{there}#@{engine}/x?n=%",
        f"http://[::ffff:127.0.0.2]:{port}/x?n=%",
        f"http://2130706434:{port}/x?n=%",
        f"http://0x7f.0.0.2:{port}/x?n=%",
        f"http://127.2:{port}/x?n=%",
        f"http:///{there}/x?n=%",
        f"http:{there}/x?n=%",
        f"//{there}/x?n=%",
        f"/\\{there}/x?n=%",
        f"/http://{there}/x?n=%",
        f"/v1/../../{there}?n=%",
        f"/;@{there}/x?n=%",
        f"{there}/x?n=%",
        f"{there}",
        "*",
        "/v1/models?n=%",
        f"/%0d%0aHost:%20{there}?n=%",
        f"/x?n=%&u=http://{there}/",
        "file:///etc/passwd",
        "http://lb.invalid:1/x?n=%",
        "http://mitm.it/x?n=%",
        "/x\0y?n=%",
        "/x\x7fy?n=%",
        "/x\ry?n=%",
        "/x\xff\xfey?n=%",
        "/" + "a" * 5000 + "?n=%",
    ]
    return [form.replace("%", str(number)).encode("latin-1") for form in forms]


METHODS = (
    *(b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"PATCH", b"CONNECT", b"PRI"),
    *(b"get", b"M-SEARCH", b"PROPFIND", b"G\0T", b"G(T", b"X" * 300),
)
VERSIONS = (b"HTTP/1.1",) * 12 + (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.1 x", b"http/1.1", b"")


def hosts(there: str, engine: str) -> list[bytes]:
    """Lines of the Host header."""
    forms = [
        f"host: {there}\r\n",
        f"Host: {engine}\r\n",
        f"host: {engine}\r\nhost: {there}\r\n",
        f"host: user@{there}\r\n",
        f"host: {there}\0.{engine}\r\n",
        f"host: {engine}, {there}\r\n",
        f"host: {engine}\r\n {there}\r\n",
        f"host : {there}\r\n",
        f" host: {there}\r\n",
        "host: lb.invalid:1\r\n",
        "host: mitm.it\r\n",
        "host: \r\n",
        "",
    ]
    return [form.encode("latin-1") for form in forms]


def extras(there: str) -> list[bytes]:
    """Headers by which some proxy lets itself be told where to go, or what to say of itself."""
    forms = [
        "",
        f"x-forwarded-host: {there}\r\nx-forwarded-server: {there}\r\nx-host: {there}\r\n",
        f"forwarded: for=1.1.1.1;host={there};proto=https\r\nx-forwarded-proto: https\r\n",
        f"x-original-url: http://{there}/\r\nx-rewrite-url: http://{there}/\r\n",
        f"x-envoy-original-dst-host: {there}\r\nx-higress-target: {there}\r\ndestination: http://{there}\r\n",
        f"x-ai-lb-endpoint: {there}\r\nX-AI-LB-Cluster: {there}\r\nx-ai-lb-: y\r\n",
        f"proxy-connection: keep-alive\r\nproxy-authorization: Basic eA==\r\nvia: 1.1 {there}\r\n",
        "connection: close, host, content-length, x-y\r\nx-y: 1\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: TLS/1.2\r\n",
        f"connection: upgrade\r\nupgrade: {there}\r\n",
        "expect: 100-continue\r\n",
        f"x-y: a\rhost: {there}\r\n",
        f"x-y: a\nhost: {there}\r\n",
        "x-y: a\0b\r\n",
        "x-y: a\r\n\tb\r\n",
        "x\0y: a\r\n",
        ": a\r\n",
        "no colon\r\n",
        f"location: http://{there}/\r\nreferer: http://{there}/\r\norigin: http://{there}\r\n",
    ]
    return [form.encode("latin-1") for form in forms]


CODINGS = (
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked"),
    *(
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding:\tchunked",
    ),
    *(b"Transfer-Encoding: identity, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
    *(b"Transfer-Encoding: x\r\nTransfer-Encoding: chunked", b" Transfer-Encoding: chunked"),
    *(b"Transfer-Encoding\t: chunked", b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chun\r\n ked"),
    *(b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding: chunked\0", b"Transfer-Encoding: 'chunked'"),
    *(b"Transfer_Encoding: chunked", b"TRANSFER-ENCODING: CHUNKED", b"Transfer-Encoding: chunked;q=1"),
    *(b"X: y\nTransfer-Encoding: chunked", b"X: y\rTransfer-Encoding: chunked", b"Transfer-Encoding: cow"),
    *(b"Transfer-Encoding: chunked,", b"Transfer-Encoding: ,chunked", b"Transfer-Encoding: chunked chunked"),
    *(b"Transfer-Encoding: \xc4\x8bhunked", b"X:\r\n\r\nTransfer-Encoding: chunked", b"Transfer-Encoding:"),
    *(
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\x0b",
        b"\0Transfer-Encoding: chunked",
    ),
)
LENGTHS = (
    *(
        b"+%d",
        b"-%d",
        b"0x%x",
        b"%d, %d",
        b"%d,0",
        b"0,%d",
        b"%d;",
        b"%d.0",
        b"%d e",
        b"%d_0",
        b"0%d",
        b"\x0b%d",
    ),
    *(b"%d\0", b"'%d'", b"%d\r\nContent-Length: 0", b"0\r\nContent-Length: %d", b"%d\r\nContent-Length: %d"),
    *(b"%d\r\n 0", b"\r\n %d", b"99999999999999999999%d", b"", b"x", b"%d\nContent-Length: 0", b"%d\xa0"),
)
SIZES = (
    *(
        b"%x",
        b"0x%x",
        b"+%x",
        b"-%x",
        b"%x ",
        b" %x",
        b"%x;a=b",
        b'%x;a="\r\nb"',
        b"%x;a\nb",
        b"%x\n",
        b"%x\r",
    ),
    *(b"000000%x", b"FFFFFFFFFFFFFFFF%x", b"%x\0", b"%x,", b"_%x", b"%x;\0", b"%x\t", b"%xg"),
)


def smuggler(dice: random.Random, there: str, number: int) -> bytes:
    """One request to one reader, two to another. What is inside is `/smuggled`."""
    inner = b"GET /smuggled?n=%d HTTP/1.1\r\nhost: %s\r\n\r\n" % (number, there.encode())
    head = b"POST /v1/outer?n=%d HTTP/1.1\r\nhost: lb.test\r\n" % number
    kind = dice.randrange(5)
    if kind == 0:  # a length and an encoding, in either order
        both = [dice.choice(CODINGS), b"Content-Length: %d" % (len(inner) + 5)]
        dice.shuffle(both)
        return head + b"\r\n".join(both) + b"\r\n\r\n0\r\n\r\n" + inner
    if kind == 1:  # an encoding, with all of it in one chunk
        coding = dice.choice(CODINGS)
        return head + coding + b"\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    if kind == 2:  # an odd length
        form = dice.choice(LENGTHS)
        value = form % ((len(inner),) * form.count(b"%"))
        return head + b"Content-Length: " + value + b"\r\n\r\n" + inner
    if kind == 3:  # odd chunks
        size = dice.choice(SIZES) % len(inner)
        ends = dice.choice((b"\r\n", b"\n", b"\r", b"", b"\0\0", b"xx"))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + inner + ends + b"0\r\n\r\n"
    # trailers, and a body where none is expected
    trailer = dice.choice((b"host: x", b"content-length: 9", b"transfer-encoding: chunked", b"x-ai-lb-a: b"))
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (
        len(inner),
        inner,
        trailer,
    )


def stray(dice: random.Random, there: str, engine: str, number: int) -> bytes:
    """A request that names somebody else, in one place or several."""
    method = dice.choice(METHODS)
    target = b"%s" % there.encode() if method == b"CONNECT" else dice.choice(targets(there, engine, number))
    body = b'{"model":"http://%s/","messages":[]}' % there.encode() if method in (b"POST", b"PUT") else b""
    head = b"%s %s %s\r\n" % (method, target, dice.choice(VERSIONS))
    head += dice.choice(hosts(there, engine)) + dice.choice(extras(there))
    if dice.random() < 0.3:
        head += dice.choice(extras(there))
    inside = b"GET / HTTP/1.1\r\nhost: %s\r\n\r\n" % there.encode() if method == b"CONNECT" else b""
    return head + (b"content-length: %d\r\n" % len(body) if body else b"") + b"\r\n" + body + inside


def preambles(there: str) -> list[bytes]:
    """Other protocols."""
    host, _, port = there.rpartition(":")
    address = bytes(map(int, host.split("."))) + int(port).to_bytes(2)
    two = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    two.initiate_connection()
    asked = {":method": "GET", ":scheme": "http", ":authority": there, ":path": "/"}
    two.send_headers(1, list(asked.items()), end_stream=True)
    return [
        b"\x05\x01\x00\x05\x01\x00\x01" + address,
        b"\x04\x01" + address[4:] + address[:4] + b"\x00",
        b"PROXY TCP4 %s 127.0.0.1 1 %s\r\nGET / HTTP/1.1\r\n\r\n" % (host.encode(), port.encode()),
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + address[:4] * 2 + address[4:] * 2,
        two.data_to_send() or b"",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x00" * 100,
        b"\r\n" * 50 + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO x\r\n",
    ]


async def hostile_requests(folder: Path, count: int) -> None:
    dice = random.Random(11)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine())
        first = await stack.enter_async_context(Bystander("127.0.0.2"))
        second = await stack.enter_async_context(Bystander("127.0.0.1"))
        balancer = await stack.enter_async_context(served(folder, config(engine)))
        gate = asyncio.Semaphore(64)
        statuses: Counter[str] = Counter()

        async def one(number: int) -> None:
            there = dice.choice((first, second)).authority
            kind = dice.random()
            if kind < 0.02:
                raw = dice.choice(preambles(there))
            elif kind < 0.4:
                raw = smuggler(dice, there, number)
            else:
                raw = stray(dice, there, engine.authority, number)
            async with gate:
                answer = await send(balancer.port, raw)
            statuses[answer[9:12].decode("latin-1") or "none"] += 1

        await asyncio.gather(*(one(number) for number in range(count)))
        doubtful: Counter[str] = Counter()
        examples: dict[str, bytes] = {}
        for head in engine.heads:
            for doubt in doubts(head, engine.authority):
                doubtful[doubt] += 1
                examples.setdefault(doubt, head[:300])
        numbers = Counter(
            found[1] for head in engine.heads if (found := NUMBER.search(head.partition(b"\r\n")[0]))
        )
        print(f"\nhostile: answers {dict(statuses)}; {len(engine.heads)} reached the engine; {doubtful}")
        for doubt, example in examples.items():
            print(doubt, example)
        assert first.visits == second.visits == 0
        assert not any(b"smuggled" in head.partition(b"\r\n")[0] for head in engine.heads)
        assert max(numbers.values()) == 1
        assert not engine.strays, engine.strays[:5]
        assert not doubtful, examples
        # It serves on.
        for _ in range(20):
            answer = await send(balancer.port, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", quiet_s=0.05)
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert await asyncio.to_thread(balancer.in_flight) == 0
        assert await asyncio.to_thread(balancer.metric, "ai_lb_hook_errors_total") == 0
        # Of requests with trailers mitmproxy itself says so, with a traceback, and answers nothing.
        log = balancer.log()
        assert log.count("Traceback") == log.count("NotImplementedError: HTTP trailers are not implemented")


async def test_2000_hostile_requests_reach_nobody_else_and_are_never_two(tmp_path: Path) -> None:
    await hostile_requests(tmp_path, 2_000)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_10000_hostile_requests_reach_nobody_else_and_are_never_two(tmp_path: Path) -> None:
    await hostile_requests(tmp_path, 10_000)


async def test_a_client_that_speaks_tls_gets_no_further(tmp_path: Path) -> None:
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with Engine() as engine, Bystander("127.0.0.2") as there, served(tmp_path, config(engine)) as its:
        for number, target in enumerate(targets(there.authority, engine.authority, 1)):
            raw = b"GET %s HTTP/1.1\r\nhost: %s\r\n\r\n" % (target, there.authority.encode())
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    await send(its.port, raw, quiet_s=0.1, tls=tls)
            assert there.visits == 0, number
        assert not any("host" in doubts(head, engine.authority) for head in engine.heads)
        assert await asyncio.to_thread(its.in_flight) == 0


async def test_headers_of_one_connection_and_of_the_balancer_are_not_passed_on(tmp_path: Path) -> None:
    said = (
        b"x-ai-lb-endpoint: forged\r\nconnection: keep-alive, x-private\r\nx-private: 1\r\n"
        b"keep-alive: timeout=99\r\nproxy-authenticate: Basic\r\nx-kept: yes\r\n"
    )
    asked = (
        b"GET /v1/models HTTP/1.1\r\nHost: lb.test\r\nX-AI-LB-Endpoint: forged\r\nx-ai-lb-tenant: other\r\n"
        b"Connection: keep-alive, X-Private, host\r\nX-Private: 1\r\nKeep-Alive: timeout=99\r\n"
        b"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\n"
        b"X-Kept: yes\r\nAuthorization: Bearer k\r\n\r\n"
    )
    async with Engine(said) as engine, served(tmp_path, config(engine)) as its:
        answer = await send(its.port, asked)
        passed = headers_of(engine.heads[0])
        gone = {
            *(b"x-ai-lb-endpoint", b"x-ai-lb-tenant", b"x-private", b"keep-alive", b"proxy-connection"),
            *(b"proxy-authorization", b"te"),
        }
        assert gone & passed.keys() == set()
        assert passed[b"x-kept"] == b"yes"
        assert passed[b"authorization"] == b"Bearer k"
        assert passed[b"host"] == engine.authority.encode()
        returned = headers_of(answer.partition(b"\r\n\r\n")[0])
        assert {b"x-private", b"keep-alive", b"proxy-authenticate"} & returned.keys() == set()
        assert returned[b"x-kept"] == b"yes"
        assert returned[b"x-ai-lb-endpoint"] == b"e0"
        assert answer.count(b"x-ai-lb-endpoint") == 1


@pytest.mark.parametrize(
    "upgrade",
    [
        b"upgrade: h2c\r\n",
        b"upgrade: h2c\r\nupgrade: h2c\r\n",
        b"upgrade: websocket, H2C\r\n",
        b"upgrade: x\r\nUpgrade: h2c\r\n",
    ],
)
async def test_no_tunnel_of_http2_is_asked_for(tmp_path: Path, upgrade: bytes) -> None:
    asked = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\n"
    async with Engine() as engine, served(tmp_path, config(engine)) as its:
        await send(its.port, asked + upgrade + b"http2-settings: AAMAAABk\r\n\r\n")
        assert {b"upgrade", b"http2-settings"} & headers_of(engine.heads[0]).keys() == set()


async def test_the_client_decides_if_its_connection_is_kept(tmp_path: Path) -> None:
    async with Engine() as engine, served(tmp_path, config(engine)) as its:
        for connection, closes in (
            (b"close", True),
            (b"Close, x-y", True),
            (b"keep-alive", False),
            (b"x", False),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", its.port)
            for _ in range(1 if closes else 3):
                writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: %s\r\n\r\n" % connection)
                await reader.readuntil(b"{}")
            if closes:
                async with asyncio.timeout(2):
                    assert await reader.read() == b""
            writer.close()
        assert len(engine.heads) == 1 + 1 + 3 + 3
