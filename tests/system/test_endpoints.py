"""Endpoints that are odd rather than dead: names without an address, early answers, errors within streams."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.addon.engine import SSE_END, SSE_EVENT, SSE_HEAD, ScriptedEngine, chunk
from tests.system.balancer import Balancer, Engines
from tests.system.clients import (
    PATIENT,
    QUICK,
    Clients,
    and_nothing_is_left,
    ask,
    ejections,
    request,
    served,
    settings,
)

RESOLVER = """\
import socket
import time

resolve = socket.getaddrinfo


def getaddrinfo(host, *arguments, **more):
    if host == "hanging.invalid":
        time.sleep(5)
    if host.endswith(".invalid"):
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")
    return resolve(host, *arguments, **more)


socket.getaddrinfo = getaddrinfo
"""


async def test_no_request_is_lost_to_names_without_an_address_and_nobody_waits_for_them(
    tmp_path: Path,
) -> None:
    script = tmp_path / "resolver.py"
    script.write_text(RESOLVER)
    with Engines(3, *QUICK) as engines:
        names = ("unknown", "hanging")
        nowhere = [{"name": name, "url": f"http://{name}.invalid:8000", "weight": 2} for name in names]
        config = settings([*nowhere, *engines.endpoints()])
        with Balancer(tmp_path, config, "-s", str(script)) as balancer:
            async with Clients(balancer, per_s=20) as clients:
                await asyncio.sleep(3)
            longest_s = clients.p(1)
            print(f"\n{dict(clients.outcomes())}, median {clients.p(0.5):.2f} s, longest {longest_s:.2f} s")
            assert set(clients.outcomes()) == {"ok"}, clients.outcomes()
            assert longest_s < 4.5, "the time-out for connecting ends it, and the event loop was not blocked"
            for name in names:
                ejected = balancer.metric("ai_lb_health_changes_total", state="ejected", endpoint=name)
                assert ejected >= 1, name
            and_nothing_is_left(balancer)


async def test_an_engine_that_flaps_every_second_gets_little_and_loses_nothing(tmp_path: Path) -> None:
    with Engines(4, *QUICK) as engines:
        config = settings(engines.endpoints(), **PATIENT)
        with Balancer(tmp_path, config) as balancer:
            async with Clients(balancer, per_s=40) as clients:
                for _ in range(2):
                    await asyncio.sleep(1)
                    await asyncio.to_thread(engines.fault, "sim-2", "refuse", seconds=1)
                    await asyncio.sleep(1)
            total = {name: engine["total"] for name, engine in engines.truth().items()}
            print(f"\nflapping: {dict(clients.outcomes())}, {total}")
            assert set(clients.outcomes()) == {"ok"}, clients.outcomes()
            assert ejections(balancer) >= 1
            assert 0 < total["sim-2"] < 0.8 * len(clients.seen) / 4, (
                "its share of the first second, and no more"
            )
            and_nothing_is_left(balancer)


async def test_an_error_after_the_first_content_is_passed_on_byte_for_byte_and_is_no_failure(
    tmp_path: Path,
) -> None:
    error = b'data: {"error":{"message":"out of memory","type":"server_error","code":500}}\n\n'
    body = chunk() + chunk(error) + chunk(b"data: [DONE]\n\n") + SSE_END

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + body)

    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(ScriptedEngine(script)) for _ in range(2)]
        endpoints = [{**engine.endpoint, "name": f"e{n}"} for n, engine in enumerate(engines)]
        config = settings(endpoints, pages=False)
        balancer = await stack.enter_async_context(served(Balancer(tmp_path, config)))
        seen = [await ask(balancer.port, request()) for _ in range(12)]
        unchunked = SSE_EVENT + error + b"data: [DONE]\n\n"
        assert {each.status for each in seen} == {200}
        assert {without_chunks(each.body) for each in seen} == {unchunked}
        assert sum(len(engine.heads) for engine in engines) == 12
        assert await asyncio.to_thread(balancer.metric, "ai_lb_health_changes_total") == 0
        await asyncio.to_thread(and_nothing_is_left, balancer)


def without_chunks(body: bytes) -> bytes:
    """The content of a chunked body, which must be whole."""
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        content += body[:length]
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
        if not length:
            assert not body
            return content


async def test_an_event_that_comes_byte_by_byte_is_progress_once_it_is_whole(tmp_path: Path) -> None:
    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD)
        for _ in range(8):
            for byte in SSE_EVENT:
                writer.write(chunk(bytes([byte])))
                await asyncio.sleep(0.01)
        writer.write(chunk(b"data: [DONE]\n\n") + SSE_END)

    config: dict[str, Any] = {"timeouts": {"stream_idle": 1.5}}
    async with ScriptedEngine(drips) as engine, AsyncExitStack() as stack:
        balancer = Balancer(tmp_path, settings([engine.endpoint], **config))
        its = await stack.enter_async_context(served(balancer))
        seen = await ask(its.port, request())
        assert seen.outcome == "ok"
        assert seen.took_s > 3
        await asyncio.to_thread(and_nothing_is_left, its)


@pytest.mark.parametrize("then", ["reads on", "closes"])
async def test_an_answer_before_the_whole_request_was_read_ends_the_exchange(
    tmp_path: Path, then: str
) -> None:
    refusal = b"HTTP/1.1 413 X\r\ncontent-length: 9\r\nconnection: close\r\n\r\ntoo large"

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        if then == "reads on":
            writer.write_eof()
            while await reader.read(65536):
                pass
        writer.close()

    server = await asyncio.start_server(early, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    large = b'{"model":"sim","messages":[{"role":"user","content":"%s"}]}' % (b"x" * 8_000_000)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    async with server, served(Balancer(tmp_path, settings([{"name": "e", "url": url}]))) as its:
        for _ in range(3):
            seen = await ask(its.port, head % len(large) + large)
            assert seen.whole
            # Where the engine closes, the reset may come before its answer was read.
            assert seen.status in ((413,) if then == "reads on" else (413, 502, 503)), seen.raw[:200]
        await asyncio.to_thread(and_nothing_is_left, its)
