"""What the balancer hears of a response while it comes, how long timers run, when clients may return."""

import asyncio
from pathlib import Path

import pytest

from lb_core.types import Placement
from tests.addon import engine as engines
from tests.addon.engine import SSE_END, SSE_HEAD, Script, chunk
from tests.addon.test_hold import ROLE
from tests.addon.test_verdicts import ERROR_EVENT, Reader, Rig, Writer, raw, rig
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
