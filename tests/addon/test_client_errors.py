"""Requests that mitmproxy itself does not take: the client is told in the form of its API."""

import asyncio
from pathlib import Path

import httpx
import orjson
import pytest

from tests.addon import engine as engines
from tests.addon.failover_rig import status
from tests.addon.test_endings import CHAT, rig
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


async def test_anthropic_s_clients_are_told_in_their_form(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer, body_size_limit="10") as its:
        answer = await its.ask(CHAT.replace(b"/v1/chat/completions", b"/v1/messages"))
        body = orjson.loads(answer.partition(b"\r\n\r\n")[2])
        assert (body["type"], body["error"]["type"]) == ("error", "request_too_large")


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
