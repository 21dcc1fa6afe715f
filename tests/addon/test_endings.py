"""Exactly one finish for each route, on every ending that mitmproxy knows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http

from lb_core.types import Outcome, Placement
from tests.addon import engine as engines
from tests.addon.engine import ScriptedEngine
from tests.addon.failover_rig import rst
from tests.addon.proxy import Proxy
from tests.waiting import until

BODY = b'{"model":"m","stream":true,"messages":[]}'
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: api.test\r\ncontent-length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)

type Leave = Callable[[asyncio.StreamWriter], None]

LEAVE: list[Leave] = [asyncio.StreamWriter.close, rst]


class Rig:
    """One proxy before one scripted engine; `outcomes` are what `finish` was told, in order."""

    def __init__(self, proxy: Proxy, engine: ScriptedEngine) -> None:
        self.proxy = proxy
        self.engine = engine
        self.placed: list[Placement] = []
        self.outcomes: list[Outcome] = []
        runtime = proxy.addon._runtime
        assert runtime is not None
        balancer = runtime.balancer
        route, finish = balancer.route, balancer.finish

        async def spied_route(*args: Any, **kwargs: Any) -> Placement:
            placement = await route(*args, **kwargs)
            self.placed.append(placement)
            return placement

        def spied_finish(placement: Placement, outcome: Outcome) -> None:
            self.outcomes.append(outcome)
            finish(placement, outcome)

        balancer.route = spied_route  # type: ignore[method-assign]
        balancer.finish = spied_finish  # type: ignore[method-assign]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.proxy.port)

    async def ask(self, raw: bytes = CHAT) -> bytes:
        """Send a request on a connection of its own and read all until the end."""
        reader, writer = await self.connect()
        writer.write(raw.replace(b"\r\nhost", b"\r\nconnection: close\r\nhost", 1))
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()

    async def settled(self, *endings: str) -> None:
        """All that was placed was finished, once, in these ways, and nothing is left behind."""
        await until(self.proxy.is_clean, "nothing is in flight")
        assert [outcome.ending.value for outcome in self.outcomes] == list(endings)
        assert len(self.placed) == len(endings)


@asynccontextmanager
async def rig(folder: Path, script: engines.Script, *more: object, **settings: str) -> AsyncIterator[Rig]:
    async with ScriptedEngine(script) as engine:
        config = {"clusters": {"c": {"endpoints": [engine.endpoint]}}, "expose_decision": True}
        async with Proxy(folder, config, *more, **settings) as proxy:
            yield Rig(proxy, engine)


async def test_a_short_answer(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        assert (await its.ask()).endswith(b"{}")
        await its.settled("complete")


async def test_a_stream_is_measured_and_passed_on_as_it_came(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.stream) as its:
        head, _, body = (await its.ask()).partition(b"\r\n\r\n")
        assert body.replace(b"\r\n", b"").count(engines.SSE_EVENT.replace(b"\n", b"")[:20]) == 3
        assert body.endswith(b"0\r\n\r\n")
        assert b"x-ai-lb-endpoint: scripted" in head
        await its.settled("complete")
        assert its.outcomes[0].ttft_s is not None
        assert its.outcomes[0].chunks >= 1


async def test_the_client_leaves_while_it_waits_for_headers(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang) as its:
        _, writer = await its.connect()
        writer.write(CHAT)
        await until(lambda: its.engine.open == 1 and its.engine.bodies, "the engine has the request")
        writer.close()
        await until(lambda: its.engine.open == 0, "the engine sees that the client left")
        await its.settled("client_left")


@pytest.mark.parametrize("leave", LEAVE, ids=["FIN", "RST"])
async def test_the_client_leaves_in_mid_stream(tmp_path: Path, leave: Leave) -> None:
    async with rig(tmp_path, engines.hang_mid_stream) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"\n\n")
        leave(writer)
        await until(lambda: its.engine.open == 0, "the engine sees that the client left")
        await its.settled("client_left")


@pytest.mark.parametrize("leave", LEAVE, ids=["FIN", "RST"])
async def test_the_client_leaves_before_its_request_is_complete(tmp_path: Path, leave: Leave) -> None:
    async with rig(tmp_path, engines.answer) as its:
        _, writer = await its.connect()
        writer.write(CHAT[:-5])
        await writer.drain()
        await asyncio.sleep(0.1)
        leave(writer)
        await its.settled()
        assert its.engine.heads == []


async def test_a_half_closed_client_counts_as_gone(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang_mid_stream) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"\n\n")
        writer.write_eof()
        await its.settled("client_left")
        writer.close()


async def test_the_endpoint_refuses_the_connection(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        its.engine._server.close()
        await its.ask()
        await its.settled("upstream_failed")
        assert its.outcomes[0].error == "connect"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (engines.close, "closed"),
        (engines.garbage, "invalid"),
        (engines.close_mid_stream, "cut"),
        (engines.reset_mid_stream, "cut"),
        (engines.bad_chunk_mid_stream, "cut"),
    ],
)
async def test_the_endpoint_fails(tmp_path: Path, script: engines.Script, error: str) -> None:
    async with rig(tmp_path, script) as its:
        answer = await its.ask()
        assert not answer.endswith(b"0\r\n\r\n")
        await its.settled("upstream_failed")
        assert its.outcomes[0].error == error


class Killer:
    """Another addon that kills flows in one hook, as a person in mitmweb may."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.kill)

    def kill(self, flow: http.HTTPFlow) -> None:
        flow.kill()


@pytest.mark.parametrize(
    ("hook", "endings"),
    [("requestheaders", []), ("request", ["client_left"]), ("responseheaders", ["client_left"])],
)
async def test_a_flow_is_killed(tmp_path: Path, hook: str, endings: list[str]) -> None:
    async with rig(tmp_path, engines.answer, Killer(hook)) as its:
        await its.ask()
        await its.settled(*endings)


async def test_a_flow_killed_in_response_is_complete(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer, Killer("response")) as its:
        assert await its.ask() == b""
        await its.settled("complete")


async def test_a_flow_that_another_addon_answered_is_not_placed(tmp_path: Path) -> None:
    class Answerer:
        def requestheaders(self, flow: http.HTTPFlow) -> None:
            flow.response = http.Response.make(401, b"no")

    async with rig(tmp_path, engines.answer, Answerer()) as its:
        assert b"401" in await its.ask()
        await its.settled()


async def test_a_flow_that_is_intercepted_and_killed_is_found_by_the_backstop(tmp_path: Path) -> None:
    class Interceptor:
        def request(self, flow: http.HTTPFlow) -> None:
            flow.intercept()
            self.flow = flow

    interceptor = Interceptor()
    async with rig(tmp_path, engines.answer, interceptor) as its:
        _, writer = await its.connect()
        writer.write(CHAT)
        await until(lambda: hasattr(interceptor, "flow"), "the flow is intercepted")
        interceptor.flow.kill()
        await asyncio.sleep(0.05)
        assert its.proxy.in_flight() == 1  # neither `response` nor `error` will come
        writer.close()
        await its.settled("abandoned")


async def test_a_hook_of_another_addon_that_is_cancelled_is_found_by_the_backstop(tmp_path: Path) -> None:
    class Canceller:
        async def request(self, flow: http.HTTPFlow) -> None:
            raise asyncio.CancelledError

    async with rig(tmp_path, engines.answer, Canceller()) as its:
        _, writer = await its.connect()
        writer.write(CHAT)
        await until(lambda: its.placed, "the request is placed")
        writer.close()
        await its.settled("abandoned")


async def test_a_body_over_the_limit_is_not_placed(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer, body_size_limit="10") as its:
        assert b" 413 " in (await its.ask()).split(b"\r\n")[0]
        await its.settled()


async def test_connect_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        raw = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nhost: x\r\n\r\n" % its.engine.port
        assert b" 400 " in (await its.ask(raw)).split(b"\r\n")[0]
        await its.settled()
        assert its.engine.open == 0


async def test_a_bug_in_the_request_hook_answers_500_and_sends_nothing_on(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        runtime = its.proxy.addon._runtime
        assert runtime is not None
        runtime.clusters["c"].snapshot = None  # type: ignore[method-assign, assignment]
        answer = await its.ask()
        assert b" 500 " in answer.split(b"\r\n")[0]
        assert b'"error":{' in answer
        assert b"ai_lb_internal" in answer
        anthropic = CHAT.replace(b"/v1/chat/completions", b"/v1/messages")
        assert b'"type":"error"' in await its.ask(anthropic)
        assert runtime.stats.registry.get_sample_value("ai_lb_hook_errors_total") == 2
        assert its.engine.heads == []
        await its.settled()


@pytest.mark.parametrize("method", ["response_started", "ended", "direct", "_feed"])
async def test_a_bug_in_any_other_hook_leaks_nothing(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    async with rig(tmp_path, engines.stream) as its:
        if method == "_feed":
            monkeypatch.setattr("lb_core.sse.SseMeter.feed", fail)
        else:
            monkeypatch.setattr(f"addons.exchange.Exchange.{method}", fail)
        answer = await its.ask()
        expected = b" 500 " if method == "direct" else b" 200 "
        assert expected in answer.split(b"\r\n")[0]
        if method != "direct":
            assert answer.endswith(b"0\r\n\r\n")
        await its.settled("abandoned" if method == "direct" else "complete")


@pytest.mark.parametrize("leave", LEAVE, ids=["FIN", "RST"])
async def test_a_websocket_is_counted_until_it_ends(tmp_path: Path, leave: Leave) -> None:
    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        await reader.read()

    raw = (
        b"GET /v1/realtime HTTP/1.1\r\nhost: api.test\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with rig(tmp_path, upgrade) as its:
        reader, writer = await its.connect()
        writer.write(raw)
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
        assert its.proxy.in_flight() == 1
        leave(writer)
        await its.settled("complete")


async def test_another_upgrade_is_counted_until_its_client_leaves(
    tmp_path: Path,
) -> None:
    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n")
        await reader.read()

    raw = b"GET /v1/other HTTP/1.1\r\nhost: api.test\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n"
    async with rig(tmp_path, upgrade) as its:
        reader, writer = await its.connect()
        writer.write(raw)
        assert b"101" in await reader.readuntil(b"\r\n\r\n")
        assert its.proxy.in_flight() == 1
        writer.close()
        await its.settled("abandoned")


async def test_the_end_of_the_proxy_gives_everything_back(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang_mid_stream) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"\n\n")
        assert its.proxy.in_flight() == 1
        store = its.proxy.addon._runtime.clusters["c"].store  # type: ignore[union-attr]
        its.proxy.master.shutdown()
        await its.proxy._task
        assert [outcome.ending.value for outcome in its.outcomes] == ["abandoned"]
        assert store.in_flight == {}
        writer.close()


async def test_pipelined_requests_are_answered_in_order_and_counted(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        reader, writer = await its.connect()
        writer.write(CHAT * 3)
        for _ in range(3):
            assert b" 200 " in await reader.readuntil(b"{}")
        writer.close()
        await its.settled("complete", "complete", "complete")
