"""How the addon ends: what it began ends with it, and streams have their time."""

import asyncio
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import ctx

from addons import connections
from lb_core import tasks
from tests.addon import engine as engines
from tests.addon.engine import SSE_END, SSE_HEAD, ScriptedEngine, chunk
from tests.addon.proxy import Gate, Proxy
from tests.waiting import until

ASK = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def one_cluster(engine: ScriptedEngine) -> dict[str, Any]:
    return {"clusters": {"c": {"endpoints": [engine.endpoint]}}}


async def ends_soon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SSE_HEAD + chunk())
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.write(chunk() + SSE_END)


async def test_nothing_of_the_addon_runs_after_a_reload_of_the_script(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        await until(lambda: proxy.addon._watch and proxy.addon._runtime._ticker, "it has started")  # type: ignore[union-attr]
        old, before = proxy.addon, set(tasks._running)
        assert before
        proxy.master.addons.get("scriptloader").addons[0].loadscript()
        await until(lambda: not before & tasks._running, "its tasks have ended")
        await until(lambda: old.failover._balancer is None, "its hooks have nothing to work with")


async def test_clients_are_gone_before_the_end(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(ASK)
        await reader.readuntil(b"{}")
        proxyserver = proxy.master.addons.get("proxyserver")
        assert proxyserver.connections
        proxy.master.shutdown()
        await proxy._task
        assert not proxyserver.connections
        writer.close()


async def test_a_drain_lets_streams_end_and_places_nothing_new(tmp_path: Path) -> None:
    async with ScriptedEngine(ends_soon) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        stream, one = await asyncio.open_connection("127.0.0.1", proxy.port)
        late, other = await asyncio.open_connection("127.0.0.1", proxy.port)
        one.write(ASK)
        await stream.readuntil(b"\n\n")
        proxy.addon._drain()
        other.write(ASK)
        head = await late.readuntil(b"\r\n\r\n")
        assert b" 503 " in head
        assert b"connection: close" in head
        proxy.master.shutdown()
        assert (await stream.read()).endswith(SSE_END)
        await proxy._task
        for writer in (one, other):
            writer.close()


async def test_a_drain_lets_a_request_end_that_waits_for_its_slot(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(engines.answer) as engine,
        Proxy(tmp_path, {**one_cluster(engine), "drain_timeout": 12}) as proxy,
    ):
        gate = Gate(proxy)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(ASK)
        await until(lambda: gate.waiting, "it waits for its slot")
        proxy.addon._drain()
        proxy.master.shutdown()
        proxyserver = proxy.master.addons.get("proxyserver")
        await until(lambda: not proxyserver.listen_addrs(), "the drain has begun")
        await asyncio.sleep(0.1)  # in which the drain looks again
        gate.opened.set()
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
        await until(proxy.addon._is_idle, "nothing keeps the proxy from its end")
        await proxy._task
        writer.close()


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of mitmproxy as a drain needs."""

    async def update(modes: list[str]) -> None:
        assert not modes

    proxyserver = SimpleNamespace(servers=SimpleNamespace(update=update))
    made = SimpleNamespace(addons=SimpleNamespace(get=lambda name: proxyserver), ended=[])
    made.shutdown = lambda: made.ended.append(True)
    monkeypatch.setattr(ctx, "master", made, raising=False)
    return made


async def test_a_drain_ends_when_nothing_is_left_or_the_time_is_over(master: Any) -> None:
    began = time.monotonic()
    await connections.drain(lambda: True, within_s=60)
    assert time.monotonic() - began < 30
    async with asyncio.timeout(5):
        await connections.drain(lambda: False, within_s=0.1)


async def test_another_signal_ends_the_drain(master: Any) -> None:
    draining = asyncio.create_task(connections.drain(lambda: False, within_s=60))
    await asyncio.sleep(0.05)
    assert not draining.done()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await draining


async def test_sigterm_is_told_and_ends_the_proxy(master: Any) -> None:
    told: list[bool] = []
    connections.on_sigterm(lambda: told.append(True))
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    assert (told, master.ended) == ([True], [True])
