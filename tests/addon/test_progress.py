"""What the balancer hears of a response while it comes, how long timers run, when clients may return."""

import asyncio
from pathlib import Path

import httpx
import pytest

from lb_core.types import Placement
from tests.addon import engine as engines
from tests.addon.engine import SSE_END, SSE_HEAD, Script, chunk
from tests.addon.test_hold import ROLE
from tests.addon.test_verdicts import BODY, ERROR_EVENT, Reader, Rig, Writer, raw, rig
from tests.waiting import until

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"


def in_turn(*pieces: bytes, every_s: float = 0.1) -> Script:
    async def script(reader: Reader, writer: Writer) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(every_s)

    return script


def hears_progress(its: Rig) -> list[Placement]:
    told: list[Placement] = []
    its.runtime.balancer.progressed = told.append  # type: ignore[method-assign, assignment]
    return told


async def test_progress_after_the_first_content_is_told(tmp_path: Path) -> None:
    script = in_turn(SSE_HEAD, *[chunk()] * 5, SSE_END)
    async with rig(tmp_path, script, timeouts={"stream_idle": 0.4}) as its:
        told = hears_progress(its)
        assert (await its.ask()).status_code == 200
        assert 1 <= len(told) <= 6


async def test_what_comes_before_the_first_content_is_no_progress(tmp_path: Path) -> None:
    script = in_turn(SSE_HEAD, *[chunk(ROLE)] * 5, chunk() + SSE_END)
    retry, timeouts = {"hold_s": 0.05}, {"stream_idle": 0.2}
    async with rig(tmp_path, script, retry=retry, timeouts=timeouts) as its:
        told = hears_progress(its)
        assert (await its.ask()).status_code == 200
        assert not told


async def test_an_answer_that_begins_in_time_may_take_its_time(tmp_path: Path) -> None:
    script = in_turn(JSON_HEAD, b"{}", every_s=0.5)
    async with rig(tmp_path, script, timeouts={"ttft_timeout": 0.3}) as its:
        assert (await its.ask()).status_code == 200
        assert [outcome.ending.value for outcome in its.ended] == ["complete"]


async def test_a_stream_that_cannot_be_read_is_not_timed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("lb_core.sse.SseMeter.feed", fault)
    script = in_turn(SSE_HEAD + chunk(), chunk() + SSE_END, every_s=0.5)
    async with rig(tmp_path, script, timeouts={"ttft_timeout": 0.3}) as its:
        assert (await its.ask()).status_code == 200
        assert [outcome.ending.value for outcome in its.ended] == ["complete"]


async def test_no_timer_runs_after_the_end_of_what_was_never_answered(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang, timeouts={"ttft_timeout": 60}) as its:
        _, writer = await asyncio.open_connection("127.0.0.1", its.proxy.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await until(lambda: "connected" in its.told, "it is sent")
        (exchange,) = its.proxy.addon._exchanges.values()
        assert exchange._first_byte is not None
        assert not exchange._first_byte._timer.cancelled()
        writer.close()
        await until(lambda: its.ended, "it has ended")
        assert exchange._first_byte._timer.cancelled()


def busy(retry_after: int, status: int = 503) -> Script:
    return raw(b"HTTP/1.1 %d X\r\nretry-after: %d\r\ncontent-length: 0\r\n\r\n" % (status, retry_after))


async def test_a_client_is_told_to_come_back_when_the_first_endpoint_has_room(tmp_path: Path) -> None:
    async with rig(tmp_path, busy(3), busy(20)) as its:
        answer = await its.ask()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    head = SSE_HEAD.replace(b"\r\n", b"\r\nretry-after: 7\r\n", 1)
    full = raw(head + chunk(ERROR_EVENT) + SSE_END)
    async with rig(tmp_path, full, full) as its:
        answer = await its.ask()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_client_of_a_full_endpoint_may_return_at_once_where_another_has_room(
    tmp_path: Path, status: int
) -> None:
    async with rig(tmp_path, busy(20, status), engines.answer, retry={"enabled": False}) as its:
        answer = await its.ask()
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")


NDJSON_HEAD = SSE_HEAD.replace(b"text/event-stream", b"application/x-ndjson")
COMPRESSED_HEAD = NDJSON_HEAD.replace(b"\r\n", b"\r\ncontent-encoding: gzip\r\n", 1)
STEP = b'data: {"step":1}\n\n'
GET = b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize(
    "begins",
    [SSE_HEAD + chunk(STEP), NDJSON_HEAD + chunk(b'{"step":1}\n')],
    ids=["events of another API", "lines of JSON"],
)
async def test_what_comes_in_pieces_and_is_silent_then_is_cut(tmp_path: Path, begins: bytes) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(begins)
        await reader.read()

    async with rig(tmp_path, script, timeouts={"stream_idle": 0.2}) as its:
        reader, writer = await asyncio.open_connection("127.0.0.1", its.proxy.port)
        writer.write(GET)
        async with asyncio.timeout(10):
            assert not (await reader.read()).endswith(SSE_END)
        writer.close()
        await until(lambda: its.ended, "it has ended")
        assert [outcome.ending.value for outcome in its.ended] == ["upstream_failed"]


@pytest.mark.parametrize(
    ("path", "pieces"),
    [
        ("/events", (SSE_HEAD + chunk(b": queued\n\n"), chunk(STEP) + SSE_END)),
        ("/events", (NDJSON_HEAD, chunk(b"{}") + SSE_END)),
        ("/events", (COMPRESSED_HEAD + chunk(b"x"), SSE_END)),
        ("/v1/chat/completions", (SSE_HEAD + chunk(ROLE), chunk() + SSE_END)),
    ],
    ids=["comments before events", "headers before a body", "compressed lines", "a role before content"],
)
async def test_what_has_not_begun_or_cannot_be_read_is_not_cut(
    tmp_path: Path, path: str, pieces: tuple[bytes, bytes]
) -> None:
    more = {"timeouts": {"stream_idle": 0.2}, "retry": {"hold_streams": False}}
    async with rig(tmp_path, in_turn(*pieces, every_s=1.0), **more) as its, httpx.AsyncClient() as client:
        async with client.stream("POST", its.proxy.url + path, json=BODY) as response:
            assert b"".join([piece async for piece in response.aiter_raw()])
        await until(lambda: its.ended, "it has ended")
        assert [outcome.ending.value for outcome in its.ended] == ["complete"]


async def test_a_client_that_pauses_does_not_make_its_endpoint_silent(tmp_path: Path) -> None:
    size = 40_000_000
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % size

    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(head + bytes(size))
        await writer.drain()

    async with rig(tmp_path, script, timeouts={"stream_idle": 0.2}) as its:
        reader, writer = await asyncio.open_connection("127.0.0.1", its.proxy.port)
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(1.5)
        async with asyncio.timeout(20):
            await reader.readexactly(size)
        writer.close()
        await until(lambda: its.ended, "it has ended")
        assert [outcome.ending.value for outcome in its.ended] == ["complete"]
