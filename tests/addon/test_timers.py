"""Timers and sockets of connections: what is over leaves nothing behind."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import ctx
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from addons.failover import leaks
from addons.failover.timers import CONNECT_TIMEOUT, ConnectTimeouts, FirstByteTimeout, StreamWatch


class Writer:
    """A socket."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Task:
    """The task of a connection."""

    def __init__(self, *, done: bool = True) -> None:
        self._done = done

    def done(self) -> bool:
        return self._done


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What mitmproxy keeps of the one client."""
    made = SimpleNamespace(transports={})
    proxyserver = SimpleNamespace(connections={"client": made})
    addons = SimpleNamespace(get=lambda name: proxyserver)
    monkeypatch.setattr(ctx, "master", SimpleNamespace(addons=addons), raising=False)
    return made


def connection(*, tls: bool = False) -> ServerConnectionHookData:
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), id="client")
    server = Server(address=("127.0.0.1", 3))
    server.tls = tls
    return ServerConnectionHookData(server=server, client=client)


@pytest.mark.parametrize("how", ["server_connected", "server_connect_error", "server_disconnected"])
async def test_no_timer_is_left_of_a_connection(handler: Any, how: str) -> None:
    timeouts = ConnectTimeouts(lambda data: 60)
    data = connection(tls=how == "server_disconnected")
    timeouts.server_connect(data)
    (timer,) = timeouts._timers.values()
    if how == "server_disconnected":
        timeouts.server_connected(data)
        (timer,) = timeouts._timers.values()  # that of TLS
    getattr(timeouts, how)(data)
    assert not timeouts._timers
    assert timer.cancelled()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_timer_that_has_fired_is_forgotten(
    handler: Any, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.failover.timers.TLS_TIMEOUT_S", 0)
    timeouts = ConnectTimeouts(lambda data: 0)
    data = connection(tls=tls)
    (timeouts.server_connected if tls else timeouts.server_connect)(data)
    assert timeouts._timers
    await asyncio.sleep(0.01)
    assert not timeouts._timers


async def test_a_connection_is_not_given_up_because_this_process_was_late(handler: Any) -> None:
    timeouts = ConnectTimeouts(lambda data: 0.2)
    data = connection()
    given_up: list[str] = []
    data.server.timestamp_start = time.time()
    handler.transports[data.server] = SimpleNamespace(
        writer=None, handler=SimpleNamespace(cancel=given_up.append)
    )
    timeouts.server_connect(data)
    await asyncio.sleep(0)
    time.sleep(0.5)
    await asyncio.sleep(0.1)
    assert not given_up
    await asyncio.sleep(0.2)
    assert given_up == [CONNECT_TIMEOUT]


async def test_a_stopped_time_out_does_nothing() -> None:
    looks = 0

    def progress() -> None:
        nonlocal looks
        looks += 1

    flow: Any = SimpleNamespace(live=True)
    idle = StreamWatch(flow, progress, idle_s=0)
    first: Any = SimpleNamespace(live=False)
    first_byte = FirstByteTimeout(first, 0)
    idle.stop()
    first_byte.stop()
    await asyncio.sleep(0.01)
    assert not looks
    assert not first_byte.fired


async def test_a_socket_that_was_connected_as_its_client_left_is_closed(
    handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "_LATER_S", 0)
    left, at_work = Writer(), Writer()
    handler.transports = {
        "left": SimpleNamespace(writer=left, handler=Task()),
        "at work": SimpleNamespace(writer=at_work, handler=Task(done=False)),
        "not connected": SimpleNamespace(writer=None, handler=None),
    }
    leaks.client_disconnected(connection().client)
    await asyncio.sleep(0.01)
    assert left.closed
    assert not at_work.closed


async def test_a_watch_tells_of_progress_and_ends_a_silent_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[Any] = []

    def cut(flow: Any) -> bool:
        cuts.append(flow)
        return len(cuts) == 2

    monkeypatch.setattr("addons.failover.timers.cut", cut)
    monkeypatch.setattr("addons.failover.timers._is_held_up", lambda flow: False)
    counts: list[int | None] = [None, 1, 2]
    told: list[str] = []
    StreamWatch(
        flow := SimpleNamespace(live=True),  # type: ignore[arg-type]
        lambda: counts.pop(0) if len(counts) > 1 else counts[0],
        idle_s=0.04,
        progressed=lambda: told.append("progress"),
    )
    async with asyncio.timeout(2):
        while len(cuts) < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert cuts == [flow, flow], "it tries again until there is something to cut"
    assert len(told) == 2


async def test_a_watch_of_a_flow_that_has_ended_looks_no_more() -> None:
    looks: list[int] = []
    flow: Any = SimpleNamespace(live=False)
    StreamWatch(flow, lambda: looks.append(1), idle_s=0)
    await asyncio.sleep(0.01)
    assert not looks


async def test_a_first_byte_time_out_waits_until_there_is_something_to_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuts: list[Any] = []

    def cut(flow: Any) -> bool:
        cuts.append(flow)
        return len(cuts) == 3

    monkeypatch.setattr("addons.failover.timers.cut", cut)
    monkeypatch.setattr("addons.failover.timers._AGAIN_S", 0.001)
    flow: Any = SimpleNamespace(live=True)
    first = FirstByteTimeout(flow, 0)
    await asyncio.sleep(0.05)
    assert cuts == [flow] * 3
    assert first.fired
