"""What the client sees, and what the hooks tell, when an endpoint fails before it answers."""

import asyncio
import contextlib
import random
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from h2.connection import H2Connection

from addons.failover.timers import FirstByteTimeout, StreamWatch
from tests.addon import engine as engines
from tests.addon.engine import SSE_EVENT, SSE_HEAD, Script, ScriptedEngine, chunk
from tests.addon.failover_rig import CHAT, Asked, BlackHole, Proxied, rst, status
from tests.waiting import free_port, until

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter

ADDRESS = re.compile(rb"\d+\.\d+\.\d+\.\d+|127\.|lb\.invalid|:\d{4,5}|[Mm]itmproxy")
ERROR_EVENT = b'data: {"error":{"message":"busy","type":"Service Unavailable","code":503}}\n\n'


def raw(data: bytes, *, then: str = "keep") -> Script:
    """Answer these bytes, and then keep the connection, close it, or reset it."""

    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(data)
        if then == "keep":
            return
        await writer.drain()
        if then == "reset":
            await asyncio.sleep(0.02)
            rst(writer)
        else:
            writer.close()

    return script


def refusal(code: int, extra: bytes = b"") -> bytes:
    body = b'{"error":"busy"}'
    return b"HTTP/1.1 %d X\r\n%scontent-length: %d\r\n\r\n%s" % (code, extra, len(body), body)


async def reset(reader: Reader, writer: Writer) -> None:
    rst(writer)


async def slow_503(reader: Reader, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"a"))
    await reader.read()


async def large_503(reader: Reader, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 503 X\r\ncontent-length: 100000000\r\n\r\n" + b"x" * 200_000)
    await reader.read()


async def comments_then_error(reader: Reader, writer: Writer) -> None:
    writer.write(SSE_HEAD + chunk(b": ping\n\n"))
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.write(chunk(b": ping\n\n" + ERROR_EVENT) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def error_in_pieces(reader: Reader, writer: Writer) -> None:
    writer.write(SSE_HEAD)
    for piece in (ERROR_EVENT[:20], ERROR_EVENT[20:-1], ERROR_EVENT[-1:]):
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(chunk(piece))
    writer.write(b"0\r\n\r\n")


SSE_ERROR = SSE_HEAD + chunk(ERROR_EVENT) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def _no_layer_crashes(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert not [record for record in caplog.get_records("call") if "crashed" in record.getMessage()]


FAULTS: dict[str, tuple[Script, str]] = {
    "503": (raw(refusal(503)), "status 503"),
    "429": (raw(refusal(429, b"retry-after: 7\r\n")), "status 429"),
    "502": (raw(refusal(502)), "status 502"),
    "504": (raw(refusal(504)), "status 504"),
    "503 of which the body does not end": (slow_503, "status 503"),
    "503 with a huge body": (large_503, "status 503"),
    "503 cut in its body": (raw(refusal(503)[:-3], then="close"), "status 503"),
    "503 without a body": (raw(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"), "status 503"),
    "reset before headers": (reset, "closed"),
    "EOF before headers": (engines.close, "closed"),
    "EOF within headers": (raw(b"HTTP/1.1 200 OK\r\ncontent-", then="close"), "invalid"),
    "garbage": (engines.garbage, "invalid"),
    "garbage and reset": (raw(b"\x00\x01\r\n\r\n", then="reset"), "invalid"),
    "two content-lengths": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
        "invalid",
    ),
    "both lengths": (
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        "invalid",
    ),
    "200 and an SSE error": (raw(SSE_ERROR), "error_event 503"),
    "200 and an SSE error in pieces": (error_in_pieces, "error_event 503"),
    "200, comments, and an SSE error": (comments_then_error, "error_event 503"),
    "200 and an SSE error without an end": (raw(SSE_HEAD + chunk(ERROR_EVENT)), "error_event 503"),
    "200, an SSE error, and EOF": (raw(SSE_HEAD + chunk(ERROR_EVENT), then="close"), "error_event 503"),
    "200, an SSE error, and reset": (raw(SSE_HEAD + chunk(ERROR_EVENT), then="reset"), "error_event 503"),
    "200 and an SSE error without an empty line": (
        raw(SSE_HEAD + chunk(ERROR_EVENT[:-2]) + b"0\r\n\r\n"),
        "error_event 503",
    ),
    "200 and closed before an event": (raw(SSE_HEAD + chunk(b": hi\n\n"), then="close"), "closed"),
    "200 and a bad chunk before an event": (raw(SSE_HEAD + b"zz\r\n"), "invalid"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("good", [engines.answer, engines.stream], ids=["short", "stream"])
async def test_a_failed_endpoint_is_replaced(tmp_path: Path, fault: str, good: Script) -> None:
    bad, cause = FAULTS[fault]
    async with ScriptedEngine(bad) as a, ScriptedEngine(good) as b, Proxied(tmp_path, a, b) as its:
        answer = await its.ask()
        assert status(answer) == 200
        assert answer.endswith(b"{}" if good is engines.answer else chunk() * 3 + b"0\r\n\r\n")
        assert its.causes() == [cause]
        assert len(a.bodies) == len(b.bodies) == 1
        assert a.bodies == b.bodies
        await its.settled("response")
        assert list(its.asked.hooks.values()) == [["request", "responseheaders", "response"]]
        await until(lambda: not a.open and not b.open, "the connections are closed")


@pytest.mark.parametrize("fault", FAULTS)
async def test_without_another_endpoint_the_client_gets_what_there_is(tmp_path: Path, fault: str) -> None:
    bad, cause = FAULTS[fault]
    async with ScriptedEngine(bad) as a, Proxied(tmp_path, a) as its:
        if fault in ("503 of which the body does not end", "503 with a huge body") or "out an end" in fault:
            _, writer = await its.connect()
            writer.write(CHAT)
            # What is passed on is not streamed by this addon, so it waits for an end.
            await until(lambda: its.asked.questions, "the addon is asked")
            writer.close()
            await its.settled("error")
            return
        answer = await its.ask()
        if cause in ("closed", "invalid") or "cut" in fault:
            assert status(answer) == 502
            assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "endpoint_failed"
            assert not ADDRESS.search(answer)
            await its.settled("error")
        elif cause == "error_event 503":
            assert status(answer) == 503
            assert b"retry-after: 1" in answer
            assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "endpoint_busy"
            await its.settled("error")
        else:
            assert answer == a_raw(a, bad, answer)
            await its.settled("response")
        assert its.causes() == [cause]


def a_raw(engine: ScriptedEngine, script: Script, answer: bytes) -> bytes:
    """What the engine wrote, as far as the test knows it."""
    closure = {
        cell.cell_contents for cell in script.__closure__ or () if isinstance(cell.cell_contents, bytes)
    }
    return closure.pop() if closure else answer


async def test_a_refused_connection_goes_to_the_next(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as b, Proxied(tmp_path, free_port(), free_port(), b) as its:
        assert (await its.ask()).endswith(b"{}")
        assert its.causes() == ["connect", "connect"]
        await its.settled("response")


async def test_a_black_hole_costs_the_connect_time_out(tmp_path: Path) -> None:
    with BlackHole() as hole:
        async with ScriptedEngine(engines.answer) as b:
            asked = Asked([hole, b.port], connect_timeout_s=0.3)
            async with Proxied(tmp_path, asked=asked) as its:
                started = time.monotonic()
                assert (await its.ask()).endswith(b"{}")
                assert 0.3 <= time.monotonic() - started < 10
                assert its.causes() == ["connect_timeout"]
                await its.settled("response")


async def test_a_tls_handshake_that_hangs_goes_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.failover.timers.TLS_TIMEOUT_S", 0.2)
    listener = await asyncio.start_server(engines.hang, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with Proxied(tmp_path, port, free_port(), port) as its:
        its.asked.scheme = "https"
        answer = await its.ask()
        assert status(answer) == 503
        assert its.causes() == ["connect"] * 3
        await its.settled("error")
    listener.close()


async def test_chain_of_refused_then_503_then_reset_then_good(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(raw(refusal(503))) as b,
        ScriptedEngine(reset) as c,
        ScriptedEngine(engines.stream) as d,
        Proxied(tmp_path, free_port(), b, c, d) as its,
    ):
        assert (await its.ask()).endswith(chunk() * 3 + b"0\r\n\r\n")
        assert its.causes() == ["connect", "status 503", "closed"]
        await its.settled("response")


@pytest.mark.parametrize(
    ("path", "kind"), [(b"/v1/chat/completions", b'"code":"endpoint_u'), (b"/v1/messages", b'"type":"error"')]
)
async def test_nobody_accepts_and_the_client_is_told_without_an_address(
    tmp_path: Path, path: bytes, kind: bytes
) -> None:
    async with Proxied(tmp_path, free_port(), free_port()) as its:
        answer = await its.ask(CHAT.replace(b"/v1/chat/completions", path))
        assert status(answer) == 503
        assert kind in answer
        assert b"retry-after: 1" in answer
        assert b"content-type: application/json" in answer
        assert not ADDRESS.search(answer)
        await its.settled("error")
        flow = its.asked.flows[0]
        assert flow.error is not None
        assert not ADDRESS.search(flow.error.msg.encode())
        assert flow.response is not None  # so that the addon can say more in it


async def test_the_answer_to_head_has_no_body(tmp_path: Path) -> None:
    async with Proxied(tmp_path, free_port()) as its:
        answer = await its.ask(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert status(answer) == 503
        assert answer.endswith(b"\r\n\r\n")
        await its.settled("error")


async def test_after_an_error_of_ours_the_client_s_connection_lives_and_the_endpoint_may_return(
    tmp_path: Path,
) -> None:
    port = free_port()
    async with Proxied(tmp_path, port) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        assert b" 503 " in await reader.readuntil(b"}}")
        assert its.http_layer().streams == {}
        engine = await asyncio.start_server(_ok_once, "127.0.0.1", port)
        writer.write(CHAT)
        assert b" 200 " in await reader.readuntil(b"{}")
        writer.close()
        engine.close()
        await its.settled("error", "response")


async def _ok_once(reader: Reader, writer: Writer) -> None:
    await reader.readuntil(b"[]}")
    writer.write(engines.OK)
    await reader.read()
    writer.close()


async def test_a_buffered_answer_cut_in_its_body_becomes_an_error_of_ours(tmp_path: Path) -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
    async with ScriptedEngine(raw(cut, then="close")) as a, Proxied(tmp_path, a) as its:
        answer = await its.ask()
        assert status(answer) == 502
        assert b"endpoint_failed" in answer
        assert not ADDRESS.search(answer)
        assert its.causes() == []
        await its.settled("error")


async def test_a_stale_connection_is_known_as_such_and_tried_again(tmp_path: Path) -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        writer.write(engines.OK)
        await reader.readuntil(b"[]}")  # the second request, which came while it was closing
        rst(writer)

    async with ScriptedEngine(once) as a, Proxied(tmp_path, a, a) as its:
        reader, writer = await its.connect()
        for _ in range(2):
            writer.write(CHAT)
            assert b" 200 " in await reader.readuntil(b"{}")
        writer.close()
        assert its.causes() == ["stale"]
        await its.settled("response", "response")


async def test_a_stream_that_ends_before_its_first_event_is_not_stale(tmp_path: Path) -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        writer.write(engines.OK)
        await reader.readuntil(b"[]}")
        writer.write(SSE_HEAD)
        await writer.drain()
        await asyncio.sleep(0.05)  # so that the headers are on their way before the end
        writer.close()

    async with ScriptedEngine(once) as a, Proxied(tmp_path, a, a) as its:
        reader, writer = await its.connect()
        for _ in range(2):
            writer.write(CHAT)
            assert b" 200 " in await reader.readuntil(b"{}")
        writer.close()
        assert its.causes() == ["closed"]


async def test_a_connection_that_had_the_request_for_long_is_not_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.failover.stream._STALE_S", 0.2)

    async def once(reader: Reader, writer: Writer) -> None:
        writer.write(engines.OK)
        await reader.readuntil(b"[]}")
        await asyncio.sleep(0.5)  # an engine that dies of the request
        rst(writer)

    async with ScriptedEngine(once) as a, Proxied(tmp_path, a, a) as its:
        reader, writer = await its.connect()
        for _ in range(2):
            writer.write(CHAT)
            assert b" 200 " in await reader.readuntil(b"{}")
        writer.close()
        assert its.causes() == ["closed"]


async def test_nothing_is_tried_again_once_a_byte_has_gone_out(tmp_path: Path) -> None:
    for script in (engines.close_mid_stream, engines.reset_mid_stream):
        async with (
            ScriptedEngine(script) as a,
            ScriptedEngine(engines.stream) as b,
            Proxied(tmp_path, a, b) as its,
        ):
            answer = await its.ask()
            assert SSE_EVENT in answer
            assert not answer.endswith(b"0\r\n\r\n")
            assert its.asked.questions == []
            assert b.heads == []
            await its.settled("error")


async def test_a_stream_passes_byte_for_byte_and_each_chunk_at_once(tmp_path: Path) -> None:
    turn = asyncio.Event()
    pieces = [b": queued\n\n", b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n']
    pieces += [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % n for n in range(5)]

    async def stepwise(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD)
        for piece in pieces:
            await turn.wait()
            turn.clear()
            writer.write(chunk(piece))
        writer.write(b"0\r\n\r\n")

    async with ScriptedEngine(stepwise) as a, Proxied(tmp_path, a) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        turn.set()
        with pytest.raises(TimeoutError):  # a comment is no event: not even the headers are out
            await asyncio.wait_for(reader.read(1), 0.2)
        turn.set()
        assert await reader.readuntil(b"\r\n\r\n") == SSE_HEAD
        assert await reader.readexactly(len(chunk(pieces[0]))) == chunk(pieces[0])
        assert await reader.readexactly(len(chunk(pieces[1]))) == chunk(pieces[1])
        for piece in pieces[2:]:
            turn.set()
            async with asyncio.timeout(1):
                assert await reader.readexactly(len(chunk(piece))) == chunk(piece)
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()
        await its.settled("response")


@pytest.mark.parametrize(
    "body",
    [
        chunk(b": " + b"x" * 70_000) + b"0\r\n\r\n",
        b"0\r\n\r\n",
        chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
        chunk(SSE_EVENT + ERROR_EVENT) + b"0\r\n\r\n",
        chunk(b"not an event") + b"0\r\n\r\n",
    ],
    ids=["more than is held", "empty", "only the end", "content and error at once", "no event"],
)
async def test_other_streams_pass_too(tmp_path: Path, body: bytes) -> None:
    async with ScriptedEngine(raw(SSE_HEAD + body)) as a, Proxied(tmp_path, a, a) as its:
        answer = await its.ask()
        assert status(answer) == 200
        if len(body) < 60_000:
            assert answer == SSE_HEAD + body
        assert answer.endswith(b"0\r\n\r\n")
        assert its.asked.questions == []
        await its.settled("response")


async def test_more_than_is_held_passes_without_an_event(tmp_path: Path) -> None:
    async def long_comment(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk(b": " + b"x" * 70_000))
        await reader.read()

    async with ScriptedEngine(long_comment) as a, Proxied(tmp_path, a) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        async with asyncio.timeout(2):
            assert await reader.readuntil(b"\r\n\r\n") == SSE_HEAD
        writer.close()
        await its.settled("error")


async def test_an_abandoned_connection_is_closed_while_the_client_stays(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(slow_503) as a,
        ScriptedEngine(engines.answer) as b,
        Proxied(tmp_path, a, b) as its,
    ):
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"{}")
        await until(lambda: not a.open, "the engine sees it", within_s=2)
        assert b.open == 1
        writer.close()
        await its.settled("response")


async def test_a_connection_whose_task_ends_without_a_word_is_closed(tmp_path: Path) -> None:
    turn = asyncio.Event()

    async def more(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk())
        await turn.wait()
        writer.write(chunk())
        await reader.read()

    async with ScriptedEngine(more) as a, Proxied(tmp_path, a) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"\n\n")
        (handler,) = its.proxyserver.connections.values()
        async with handler._server_event_lock:  # as another task does
            turn.set()
            await asyncio.sleep(0.05)
            handler.transports[its.asked.flows[0].server_conn].handler.cancel()
            await asyncio.sleep(0.05)
        await until(lambda: not a.open, "the engine sees it", within_s=2)
        writer.close()
        await its.settled("error")


async def test_a_compressed_stream_is_not_held(tmp_path: Path) -> None:
    head = SSE_HEAD.replace(b"content-type", b"content-encoding: gzip\r\ncontent-type")

    async def half(reader: Reader, writer: Writer) -> None:
        writer.write(head)
        await reader.read()

    async with ScriptedEngine(half) as a, Proxied(tmp_path, a) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        async with asyncio.timeout(2):
            assert await reader.readuntil(b"\r\n\r\n") == head
        writer.close()
        await its.settled("error")


async def test_connections_are_reused_and_the_failing_one_too(tmp_path: Path) -> None:
    opened = []

    async def counted(reader: Reader, writer: Writer) -> None:
        opened.append(writer)
        writer.write(refusal(503))

    async with (
        ScriptedEngine(counted) as a,
        ScriptedEngine(engines.stream) as b,
        Proxied(tmp_path, a, b) as its,
    ):
        reader, writer = await its.connect()
        for _ in range(5):
            writer.write(CHAT)
            assert b" 200 " in await reader.readuntil(b"0\r\n\r\n")
        assert len(opened) == 5
        assert len(set(map(id, opened))) == 1
        assert its.asked.connected == 2
        writer.close()
        await its.settled(*["response"] * 5)


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(reset) as a,
        ScriptedEngine(engines.answer) as b,
        Proxied(tmp_path, a, b) as its,
    ):
        reader, writer = await its.connect()
        writer.write(CHAT * 4)
        for _ in range(4):
            assert b" 200 " in await reader.readuntil(b"{}")
        writer.close()
        assert its.causes() == ["closed"] * 4
        await its.settled(*["response"] * 4)


async def test_closed_connections_are_forgotten(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(reset) as a,
        ScriptedEngine(engines.answer) as b,
        Proxied(tmp_path, a, b) as its,
    ):
        reader, writer = await its.connect()
        for _ in range(60):
            writer.write(CHAT)
            await reader.readuntil(b"{}")
        assert len(its.http_layer().connections) < 20
        writer.close()
        await its.settled(*["response"] * 60)


@pytest.mark.parametrize("stage", ["connect", "ask", "headers", "held", "body of a 503", "stream"])
async def test_the_client_leaves(tmp_path: Path, stage: str) -> None:
    async def held(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk(b": queued\n\n"))
        await reader.read()

    scripts: dict[str, Script] = {
        "ask": raw(refusal(503)),
        "headers": engines.hang,
        "held": held,
        "body of a 503": slow_503,
        "stream": engines.hang_mid_stream,
    }
    with BlackHole() as hole:
        async with (
            ScriptedEngine(scripts.get(stage, engines.hang)) as a,
            ScriptedEngine(engines.answer) as b,
        ):
            asked = Asked([hole if stage == "connect" else a.port, b.port])
            asked.answers_after_s = 0.3
            async with Proxied(tmp_path, asked=asked) as its:
                _, writer = await its.connect()
                writer.write(CHAT)
                if stage == "connect":
                    await until(lambda: asked.connecting, "it connects")
                elif stage == "ask":
                    await until(lambda: asked.questions, "the addon is asked")
                else:
                    await until(lambda: a.bodies, "the engine has the request")
                await asyncio.sleep(0.05)
                writer.close()
                await its.settled("error")
                flow = asked.flows[0]
                assert flow.error is not None
                assert flow.error.msg == "Client disconnected."
                assert len(asked.questions) == (stage == "ask")
                assert b.heads == []
                await until(lambda: not a.open, "the engine sees it")


async def test_killed_while_the_addon_is_asked(tmp_path: Path) -> None:
    async with ScriptedEngine(reset) as a, ScriptedEngine(engines.answer) as b:
        asked = Asked([a.port, b.port])
        asked.answers_after_s = 0.2
        async with Proxied(tmp_path, asked=asked) as its:
            asking = asyncio.create_task(its.ask())
            await until(lambda: asked.questions, "the addon is asked")
            asked.flows[0].kill()
            assert await asking == b""
            assert b.heads == []
            await its.settled("error")


async def test_an_addon_that_fails_says_no(tmp_path: Path) -> None:
    class Faulty(Asked):
        async def ai_lb_retry(self, question: Any) -> None:
            raise RuntimeError("a bug")

    async with ScriptedEngine(reset) as a, Proxied(tmp_path, asked=Faulty([a.port])) as its:
        assert status(await its.ask()) == 502
        await its.settled("error")


async def test_an_upgrade_passes(tmp_path: Path) -> None:
    async def upgrade(reader: Reader, writer: Writer) -> None:
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\nhello"
        )
        await reader.read()

    raw_request = b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n"
    async with ScriptedEngine(upgrade) as a, Proxied(tmp_path, a) as its:
        reader, writer = await its.connect()
        writer.write(raw_request)
        assert b"hello" in await reader.readuntil(b"hello")
        writer.close()
        await its.settled("response")


async def test_an_upgrade_at_the_second_endpoint_passes(tmp_path: Path) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n"

    async def upgrade(reader: Reader, writer: Writer) -> None:
        writer.write(switch + b"hello")
        await asyncio.sleep(0.4)  # longer than the wait for the end of the 503
        writer.write(b"again")
        await reader.read()

    raw_request = b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n"
    bad = raw(refusal(503))
    async with ScriptedEngine(bad) as a, ScriptedEngine(upgrade) as b, Proxied(tmp_path, a, b) as its:
        reader, writer = await its.connect()
        writer.write(raw_request)
        assert await reader.readuntil(b"again") == switch + b"helloagain"
        writer.close()
        await its.settled("response")


# -- time-outs ----------------------------------------------------------------------------------------


async def test_a_first_byte_that_does_not_come_in_time_is_a_504_and_not_tried_again(tmp_path: Path) -> None:
    class Timed(Asked):
        def request(self, flow: Any) -> None:
            super().request(flow)
            self.timer = FirstByteTimeout(flow, 0.2)

        async def ai_lb_retry(self, question: Any) -> None:
            from dataclasses import replace

            from lb_core.retry import Cause

            assert self.timer.fired
            question.failure = replace(question.failure, cause=Cause.TIMED_OUT)

    async with ScriptedEngine(engines.hang) as a, Proxied(tmp_path, asked=Timed([a.port])) as its:
        answer = await its.ask()
        assert status(answer) == 504
        assert b"endpoint_timed_out" in answer
        await its.settled("error")
        await until(lambda: not a.open, "the engine sees it")


class Idle(Asked):
    """Cuts streams whose addon has counted no event for 0.4 s."""

    events = 0
    timer: StreamWatch

    def responseheaders(self, flow: Any) -> None:
        super().responseheaders(flow)
        flow.response.stream = self.feed
        self.timer = StreamWatch(flow, lambda: self.events or None, idle_s=0.4)

    def feed(self, data: bytes) -> bytes:
        self.events += data.count(b"data:")
        return data

    def response(self, flow: Any) -> None:
        super().response(flow)
        self.timer.stop()


async def test_a_stream_of_comments_is_cut_and_the_client_can_tell(tmp_path: Path) -> None:
    async def comments(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk())
        while not writer.is_closing():
            await asyncio.sleep(0.05)
            writer.write(chunk(b": ping\n\n"))
            await writer.drain()

    async with ScriptedEngine(comments) as a:
        asked = Idle([a.port])
        async with Proxied(tmp_path, asked=asked) as its:
            started = time.monotonic()
            answer = await its.ask()
            assert 0.4 <= time.monotonic() - started < 10
            assert status(answer) == 200
            assert not answer.endswith(b"0\r\n\r\n")
            await its.settled("error")
            await until(lambda: not a.open, "the engine sees it")


async def test_a_slow_stream_is_not_cut(tmp_path: Path) -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD)
        for _ in range(4):
            writer.write(chunk())
            await asyncio.sleep(0.25)
        writer.write(b"0\r\n\r\n")

    async with ScriptedEngine(slow) as a, Proxied(tmp_path, asked=Idle([a.port])) as its:
        assert (await its.ask()).endswith(b"0\r\n\r\n")
        await its.settled("response")


# -- all at once --------------------------------------------------------------------------------------


class Shuffled(Asked):
    """Each flow has an order of its own, and the answers take a moment or not."""

    def __init__(self, ports: list[int], chance: random.Random) -> None:
        super().__init__(ports, connect_timeout_s=0.05)
        self.chance = chance

    def _direct(self, flow: Any) -> None:
        self.chance.shuffle(self.left[flow.id])
        super()._direct(flow)

    async def ai_lb_retry(self, question: Any) -> None:
        self.answers_after_s = self.chance.choice((0, 0, 0.005))
        await super().ai_lb_retry(question)


@pytest.mark.parametrize("seed", [1, 2])
async def test_chaos_ends_each_flow_once_and_leaves_nothing_open(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    bad = [script for script, _ in FAULTS.values()] + [
        engines.hang,
        engines.hang_mid_stream,
        engines.close_mid_stream,
        engines.reset_mid_stream,
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", then="close"),
    ]
    good = [engines.answer, engines.stream]

    async def any_script(reader: Reader, writer: Writer) -> None:
        await chance.choice(chance.choice((bad, good)))(reader, writer)

    async def client(its: Proxied, requests: int) -> None:
        while requests > 0:
            reader, writer = await its.connect()
            for _ in range(chance.randint(1, 4)):  # one after the other, or pipelined
                writer.write(CHAT)
                requests -= 1
                with contextlib.suppress(TimeoutError, ConnectionError):
                    await asyncio.wait_for(reader.read(1000), chance.uniform(0, 0.04))
            if chance.random() < 0.3:
                rst(writer)
            writer.close()

    with BlackHole() as hole:
        async with AsyncExitStack() as stack:
            fleet = [await stack.enter_async_context(ScriptedEngine(any_script)) for _ in range(3)]
            asked = Shuffled([engine.port for engine in fleet] + [free_port(), hole], chance)
            its = await stack.enter_async_context(Proxied(tmp_path, asked=asked))
            await asyncio.gather(*(client(its, 50) for _ in range(10)))
            await until(asked.all_ended, "all flows ended")
            endings = asked.endings()
            assert len(endings) > 100
            assert {"response", "error"} == set(endings)
            assert {str(question.failure.cause) for question in asked.questions} >= {
                "connect",
                "closed",
                "invalid",
                "status",
                "error_event",
            }
            await its.settled(*endings)
            await until(lambda: not any(engine.open for engine in fleet), "the engines are idle")


# -- other ways in ------------------------------------------------------------------------------------


class _Http2Only(ssl.SSLContext):
    def __init__(self, protocol: int) -> None:
        super().__init__()
        self.set_alpn_protocols(["h2"])

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        super().set_alpn_protocols(["h2"])  # httpx prefers the other one, and mitmproxy follows it


def http2_only() -> ssl.SSLContext:
    context = _Http2Only(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_http2_clients_are_served_and_failed_over(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(ScriptedEngine(raw(refusal(503))))
        b = await stack.enter_async_context(ScriptedEngine(engines.stream))
        its = await stack.enter_async_context(Proxied(tmp_path, free_port(), a, b))
        async with httpx.AsyncClient(http1=False, http2=True, verify=http2_only()) as client:
            url = f"https://127.0.0.1:{its.port}/v1/chat/completions"
            answers = await asyncio.gather(*(client.post(url, content=b"{}") for _ in range(4)))
            assert {answer.http_version for answer in answers} == {"HTTP/2"}
            assert [answer.content for answer in answers] == [SSE_EVENT * 3] * 4
            its.asked.ports = [free_port()]
            refused = await client.post(url, content=b"{}")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "endpoint_unreachable")
        await its.settled(*["response"] * 4, "error")


async def test_waiting_for_a_turn_is_not_a_connect_time_out(tmp_path: Path) -> None:
    async def half_a_second(reader: Reader, writer: Writer) -> None:
        await asyncio.sleep(0.5)
        writer.write(engines.OK)

    async with ScriptedEngine(half_a_second) as a:
        asked = Asked([a.port], connect_timeout_s=0.1)
        async with Proxied(tmp_path, asked=asked) as its:
            async with httpx.AsyncClient(http1=False, http2=True, verify=http2_only()) as client:
                url = f"https://127.0.0.1:{its.port}/"
                # mitmproxy opens at most five connections to an address for one client connection.
                answers = await asyncio.gather(*(client.get(url) for _ in range(7)))
            assert [answer.status_code for answer in answers] == [200] * 7
            await its.settled(*["response"] * 7)


async def _queued(reader: Reader, writer: Writer) -> None:
    writer.write(SSE_HEAD + chunk(b": queued\n\n"))
    await reader.read()


async def http2_request(its: Proxied) -> tuple[Writer, H2Connection]:
    """A request on a connection that stays when the request has ended."""
    _, writer = await asyncio.open_connection("127.0.0.1", its.port, ssl=http2_only())
    client = H2Connection()
    client.initiate_connection()
    head = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "x"}
    client.send_headers(1, list(head.items()), end_stream=True)
    writer.write(client.data_to_send())
    return writer, client


async def test_a_flow_killed_while_the_addon_is_asked_is_forgotten_though_its_client_stays(
    tmp_path: Path,
) -> None:
    async with ScriptedEngine(reset) as a:
        asked = Asked([a.port, a.port])
        asked.answers_after_s = 0.2
        async with Proxied(tmp_path, asked=asked) as its:
            writer, _ = await http2_request(its)
            await until(lambda: asked.questions, "the addon is asked")
            asked.flows[0].kill()
            await until(lambda: its.http_layer().streams == {}, "the flow is forgotten", within_s=2)
            writer.close()
            await its.settled("error")


@pytest.mark.parametrize("script", [_queued, slow_503])
async def test_an_http2_stream_reset_while_it_is_held_closes_its_connection(
    tmp_path: Path, script: Script
) -> None:
    asked = Asked([])
    asked.answers_after_s = 0.3
    async with ScriptedEngine(script) as a, Proxied(tmp_path, asked=asked) as its:
        asked.ports = [a.port, a.port]
        writer, client = await http2_request(its)
        await until(lambda: a.heads if script is _queued else asked.questions, "the flow is held")
        await asyncio.sleep(0.05)
        client.reset_stream(1)
        writer.write(client.data_to_send())
        await until(lambda: not a.open, "the engine sees it")
        assert its.proxyserver.connections
        writer.close()
        await its.settled("error")


async def test_replayed_flows_go_through_mitmproxys_own_layer(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as a, Proxied(tmp_path, a) as its:
        assert (await its.ask()).endswith(b"{}")
        its.asked.ports = [free_port()]
        copy = its.asked.flows[0].copy()
        its.master.commands.call("replay.client", [copy])
        await until(lambda: copy.error, "the replay failed")
        its.asked.ports = [a.port]
        again = its.asked.flows[0].copy()
        its.master.commands.call("replay.client", [again])
        await until(lambda: again.response, "the replay is answered")
        assert its.asked.questions == []
