"""Streams whose events can be read are read, the others are left alone."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from tests.addon import engine as engines
from tests.addon.engine import SSE_END, SSE_EVENT, SSE_HEAD, ScriptedEngine, chunk
from tests.addon.proxy import Proxy
from tests.addon.test_ai_lb import Keeper, one_cluster, send
from tests.waiting import until

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter

STREAM = json.dumps({"model": "m", "stream": True, "messages": []}).encode()
WHOLE = json.dumps({"model": "m", "messages": []}).encode()


@pytest.mark.parametrize(
    ("body", "asked", "passed"),
    [
        (STREAM, "Accept-Encoding: gzip, br", b"accept-encoding: identity"),
        (STREAM, "accept: */*", None),
        (WHOLE, "accept-encoding: gzip, br", b"accept-encoding: gzip, br"),
    ],
    ids=["a stream", "a stream that may not be compressed", "an answer in one piece"],
)
async def test_an_engine_is_not_asked_to_compress_a_stream(
    tmp_path: Path, body: bytes, asked: str, passed: bytes | None
) -> None:
    async with ScriptedEngine(engines.stream) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        await send(proxy, body, asked)
        lines = [line for line in engine.heads[0].lower().split(b"\r\n") if line.startswith(b"accept-enc")]
        assert lines == ([] if passed is None else [passed])


@pytest.mark.parametrize("kind", [b"Text/Event-Stream; charset=utf-8", b"text/event-stream"])
@pytest.mark.parametrize("coding", [b"", b"content-encoding: Identity\r\n"])
async def test_a_readable_stream_is_measured(tmp_path: Path, kind: bytes, coding: bytes) -> None:
    head = SSE_HEAD.replace(b"text/event-stream\r\n", kind + b"\r\n" + coding)

    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(head + chunk() * 3 + SSE_END)

    keeper = Keeper()
    async with ScriptedEngine(script) as engine, Proxy(tmp_path, one_cluster(engine), keeper) as proxy:
        await send(proxy, STREAM)
        await until(lambda: keeper.flows, "the flow ended")
        assert keeper.flows[0].metadata["ai_lb"]["outcome"]["ttft_s"] is not None


async def test_a_compressed_stream_passes_unread_and_is_never_taken_for_silent(tmp_path: Path) -> None:
    packed = gzip.compress(SSE_EVENT * 3)
    turn = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD.replace(b"\r\n", b"\r\ncontent-encoding: gzip\r\n", 1) + chunk(packed[:20]))
        await turn.wait()
        writer.write(chunk(packed[20:]) + SSE_END)

    keeper = Keeper()
    async with ScriptedEngine(script) as engine:
        config = one_cluster(engine, timeouts={"stream_idle": 0.2, "ttft_timeout": 0.2})
        async with Proxy(tmp_path, config, keeper) as proxy:
            sent = asyncio.create_task(send(proxy, STREAM))
            await until(lambda: proxy.in_flight() == 1 and engine.bodies, "it is on its way")
            runtime = proxy.addon._runtime
            assert runtime is not None
            (home,) = runtime.balancer._homes.values()
            await until(lambda: home.attempt.answered, "the engine has answered, as its health sees it")
            await asyncio.sleep(0.6)
            turn.set()
            _, body = await sent
            assert body == chunk(packed[:20]) + chunk(packed[20:]) + SSE_END
            await until(lambda: keeper.flows, "the flow ended")
            outcome = keeper.flows[0].metadata["ai_lb"]["outcome"]
            assert (outcome["ending"], outcome["status"]) == ("complete", 200)
