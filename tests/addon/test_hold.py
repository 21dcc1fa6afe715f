"""How long a stream is held back until its first event, and how long its first content may take."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from addons.failover.stream import FailoverStream
from tests.addon import engine as engines
from tests.addon.engine import SSE_END, SSE_EVENT, SSE_HEAD, Script, ScriptedEngine, chunk
from tests.addon.failover_rig import Proxied, rst, status
from tests.addon.proxy import Proxy
from tests.addon.test_endings import CHAT, Rig
from tests.addon.test_failover import ERROR_EVENT, raw, refusal
from tests.waiting import until

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter

PING = b": queued\n\n"
ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'


@asynccontextmanager
async def pair(
    folder: Path, script: Script, *, then: Script = engines.stream, **config: Any
) -> AsyncIterator[tuple[Rig, ScriptedEngine]]:
    """A proxy before an engine with this script, which comes first, and a good one."""
    async with ScriptedEngine(script) as first, ScriptedEngine(then) as second:
        endpoints = [{**first.endpoint, "name": "a"}, {**second.endpoint, "name": "b"}]
        settings = {"clusters": {"c": {"endpoints": endpoints}}, **config}
        async with Proxy(folder, settings) as proxy:
            yield Rig(proxy, first), second


def after(seconds: float, then: bytes, *, first: bytes = SSE_HEAD + chunk(PING)) -> Script:
    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(first)
        await writer.drain()
        await asyncio.sleep(seconds)
        writer.write(then)
        await reader.read()

    return script


async def test_headers_wait_for_the_first_event_for_a_limited_time(tmp_path: Path) -> None:
    async with pair(tmp_path, after(5, b""), retry={"hold_s": 0.4}) as (its, other):
        reader, writer = await its.connect()
        writer.write(CHAT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        async with asyncio.timeout(1):
            assert await reader.readuntil(b"\n\n\r\n") == SSE_HEAD + chunk(PING)
        writer.close()
        await its.settled("client_left")
        assert other.heads == []


async def test_an_error_while_it_is_held_is_tried_elsewhere(tmp_path: Path) -> None:
    script = after(0.1, chunk(ERROR_EVENT) + SSE_END)
    async with pair(tmp_path, script, retry={"hold_s": 0.4}) as (its, other):
        assert (await its.ask()).endswith(chunk() * 3 + SSE_END)
        await its.settled("complete")
        assert len(other.heads) == 1


async def test_an_error_after_that_is_passed_on_and_judged_all_the_same(tmp_path: Path) -> None:
    script = after(0.5, chunk(ERROR_EVENT) + SSE_END)
    async with pair(tmp_path, script, retry={"hold_s": 0.1}) as (its, other):
        assert await its.ask() == SSE_HEAD + chunk(PING) + chunk(ERROR_EVENT) + SSE_END
        await its.settled("complete")
        assert its.outcomes[0].error_code == 503
        assert other.heads == []


async def test_a_stream_that_breaks_off_after_that_is_not_tried_elsewhere(tmp_path: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk(PING))
        await asyncio.sleep(0.4)
        rst(writer)

    async with pair(tmp_path, script, retry={"hold_s": 0.1}) as (its, other):
        assert await its.ask() == SSE_HEAD + chunk(PING)
        await its.settled("upstream_failed")
        assert other.heads == []


async def test_requests_that_ended_are_not_kept_with_their_connection(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.stream) as a, Proxied(tmp_path, a) as its:
        reader, writer = await its.connect()
        for _ in range(5):
            writer.write(CHAT)
            await reader.readuntil(SSE_END)
        layer = its.http_layer()
        assert layer.streams == {}
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, FailoverStream)]
        writer.close()
        await its.settled(*["response"] * 5)


@pytest.mark.parametrize(
    "script",
    [
        raw(refusal(503)),
        raw(refusal(503)[:-3], then="close"),
        after(0.05, chunk(ERROR_EVENT) + SSE_END),
        raw(SSE_HEAD + chunk() + SSE_END),
    ],
    ids=["judged", "failed", "held and judged", "held and passed on"],
)
async def test_requests_that_ended_are_not_kept_by_their_timers(tmp_path: Path, script: Script) -> None:
    async with pair(tmp_path, script, then=engines.answer, retry={"hold_s": 30}) as (its, _):
        _, writer = await its.connect()
        writer.write(CHAT)
        await until(lambda: its.outcomes, "it has ended")
        await asyncio.sleep(0.05)
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, FailoverStream)]
        writer.close()


# -- the first content --------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [SSE_HEAD, SSE_HEAD + chunk(PING), SSE_HEAD + chunk(ROLE)])
async def test_an_engine_that_freezes_after_its_headers_is_cut_off_in_time(
    tmp_path: Path, first: bytes
) -> None:
    script = after(5, b"", first=first)
    config: dict[str, Any] = {"retry": {"hold_s": 0.1}, "timeouts": {"ttft_timeout": 0.5}}
    async with pair(tmp_path, script, **config) as (its, other):
        async with asyncio.timeout(2):
            assert await its.ask() == first
        await its.settled("timed_out")
        assert its.outcomes[0].error == "timed_out"
        assert other.heads == []
        await until(lambda: not its.engine.open, "the engine sees it")


async def test_one_whose_body_ends_with_its_connection_is_timed_out_too(tmp_path: Path) -> None:
    script = after(5, b"", first=b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + PING)
    config: dict[str, Any] = {"retry": {"hold_s": 0.1}, "timeouts": {"ttft_timeout": 0.4}}
    async with pair(tmp_path, script, **config) as (its, _):
        await its.ask()
        await its.settled("timed_out")


async def test_while_it_is_held_the_answer_is_504(tmp_path: Path) -> None:
    script = after(5, b"")
    config: dict[str, Any] = {"retry": {"hold_s": 2}, "timeouts": {"ttft_timeout": 0.2}}
    async with pair(tmp_path, script, **config) as (its, other):
        assert status(await its.ask()) == 504
        await its.settled("timed_out")
        assert other.heads == []


async def test_content_in_time_ends_the_time_out(tmp_path: Path) -> None:
    script = after(0.6, chunk() + SSE_END, first=SSE_HEAD + chunk())
    async with pair(tmp_path, script, timeouts={"ttft_timeout": 0.3}) as (its, _):
        reader, writer = await its.connect()
        writer.write(CHAT)
        assert (await reader.readuntil(SSE_END)).count(SSE_EVENT) == 2
        writer.close()
        await its.settled("complete")


async def test_where_content_cannot_be_told_any_event_ends_the_time_out(tmp_path: Path) -> None:
    script = after(0.6, SSE_END, first=SSE_HEAD + chunk(b'data: {"step":1}\n\n'))
    async with pair(tmp_path, script, timeouts={"ttft_timeout": 0.3}) as (its, _):
        reader, writer = await its.connect()
        writer.write(b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(SSE_END)
        writer.close()
        await its.settled("complete")
