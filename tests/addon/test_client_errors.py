"""Requests that mitmproxy itself does not take: the client is told in the form of its API."""

import asyncio
import contextlib
from pathlib import Path

import httpx
import orjson
import pytest

from tests.addon import engine as engines
from tests.addon.failover_rig import status
from tests.addon.test_ai_lb import Keeper
from tests.addon.test_endings import BODY, CHAT, rig
from tests.waiting import until

REFUSED: dict[str, tuple[bytes, int]] = {
    "CONNECT": (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "an odd encoding": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n", 400),
    "a bad header": (b"GET / HTTP/1.1\r\nhost: x\r\nx\x00y: z\r\n\r\n", 400),
    "no HTTP": (b"what is this\r\n\r\n", 400),
    "a long body": (CHAT, 413),
    "a long body in chunks": (
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + engines.chunk(b"x" * 100),
        413,
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
async def test_what_is_not_taken_is_answered_without_a_page_of_mitmproxy(
    tmp_path: Path, refused: str
) -> None:
    request, expected = REFUSED[refused]
    async with rig(tmp_path, engines.answer, body_size_limit="10") as its:
        reader, writer = await its.connect()
        writer.write(request)
        async with asyncio.timeout(2):
            answer = await reader.read()
        assert status(answer) == expected
        head, _, body = answer.partition(b"\r\n\r\n")
        error = orjson.loads(body)["error"]
        assert error["code"] == ("request_too_large" if expected == 413 else "malformed_request")
        assert error["type"] == "invalid_request_error"
        assert b"mitmproxy" not in answer.lower()
        assert b"content-type: application/json" in head
        assert b"connection: close" in head
        writer.close()
        await its.settled()
        assert its.engine.heads == []


@pytest.mark.parametrize("line", [b"a: b\r\n", b"x-long: " + b"y" * 100_000], ids=["short", "long"])
@pytest.mark.parametrize("first", [b"", CHAT], ids=["first", "pipelined"])
async def test_a_head_without_end_is_refused_long_before_it_costs_anything(
    tmp_path: Path, line: bytes, first: bytes
) -> None:
    async with rig(tmp_path, engines.answer) as its:
        reader, writer = await its.connect()
        writer.write(first + b"GET / HTTP/1.1\r\nhost: x\r\n" + line * (300_000 // len(line)))
        async with asyncio.timeout(20):
            answer = await reader.read()
        answer = answer[answer.rindex(b"HTTP/1.1 ") :]
        assert status(answer) == 431
        assert b"head_too_large" in answer
        writer.close()
        await its.settled(*(["complete"] if first else []))


async def test_a_head_of_usual_length_is_taken_in_pieces(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        head = b"x-long: " + b"y" * 50_000 + b"\r\n"
        assert status(await its.ask(CHAT.replace(b"host:", head + b"host:"))) == 200
        await its.settled("complete")


async def test_a_head_that_does_not_come_to_its_end_is_cut_off_and_an_idle_client_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.client_connection.HEAD_S", 0.3)
    async with rig(tmp_path, engines.answer) as its:
        idle_reader, idle = await its.connect()
        idle.write(CHAT[:20])
        await asyncio.sleep(0.1)
        idle.write(CHAT[20:])
        await idle_reader.readuntil(b"{}")
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"{}")
        writer.write(CHAT[:20])
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        idle.write(CHAT)
        await idle_reader.readuntil(b"{}")
        idle.close()
        writer.close()
        await its.settled("complete", "complete", "complete")


async def test_what_is_sent_before_its_turn_is_not_kept_without_end(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang) as its:
        _, writer = await its.connect()
        writer.write(CHAT)
        await until(lambda: its.engine.bodies, "the engine has the request")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                writer.write(b"x" * 1_000_000)
                await writer.drain()
        await its.settled("client_left")
        writer.close()


async def test_a_body_in_tiny_chunks_arrives_whole(tmp_path: Path) -> None:
    keeper = Keeper()
    async with rig(tmp_path, engines.answer, keeper) as its:
        chunks = b"".join(engines.chunk(BODY[at : at + 1]) for at in range(len(BODY)))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        assert status(await its.ask(head + chunks + b"0\r\n\r\n")) == 200
        assert keeper.flows[0].request.raw_content == BODY
        await its.settled("complete")


async def test_anthropic_s_clients_are_told_in_their_form(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer, body_size_limit="10") as its:
        answer = await its.ask(CHAT.replace(b"/v1/chat/completions", b"/v1/messages"))
        body = orjson.loads(answer.partition(b"\r\n\r\n")[2])
        assert (body["type"], body["error"]["type"]) == ("error", "request_too_large")


async def test_a_long_body_is_counted_as_refused(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer, body_size_limit="10") as its:
        await its.ask(CHAT)
        runtime = its.proxy.addon._runtime
        assert runtime is not None
        labels = {"code": "request_too_large"}
        assert runtime.stats.registry.get_sample_value("ai_lb_refused_total", labels) == 1


async def test_who_sends_all_before_it_reads_is_told_too(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer, body_size_limit="1m") as its, httpx.AsyncClient() as client:
        for _ in range(5):
            answer = await client.post(f"{its.proxy.url}/v1/chat/completions", content=b"x" * 30_000_000)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"


async def test_who_goes_on_sending_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("addons.client_connection.LINGER_S", 0.2)
    async with rig(tmp_path, engines.answer, body_size_limit="10") as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.read()
        await until(lambda: not its.proxy.master.addons.get("proxyserver").connections, "it is closed")
        writer.close()


async def test_a_request_after_a_good_one_is_refused_alike(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        reader, writer = await its.connect()
        writer.write(CHAT)
        await reader.readuntil(b"{}")
        writer.write(b"what is this\r\n\r\n")
        async with asyncio.timeout(2):
            answer = await reader.read()
        assert status(answer) == 400
        assert b"malformed_request" in answer
        writer.close()
        await its.settled("complete")
