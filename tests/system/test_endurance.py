"""What runs out or does not end: files, disk, memory, clients that do not read and such that do not send."""

import asyncio
import resource
import socket
import statistics
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.addon.engine import SSE_EVENT, SSE_HEAD, Script, ScriptedEngine, chunk
from tests.system.balancer import Balancer, Engines
from tests.system.clients import (
    PATH,
    PATIENT,
    QUICK,
    and_nothing_is_left,
    ask,
    ejections,
    request,
    served,
    settings,
)
from tests.system.load import Load, stream_request
from tests.waiting import eventually

MB = 1 << 20
SMALL = 15


def patient(engines: Engines) -> Any:
    """One cluster of them all."""
    return settings(engines.endpoints(), **PATIENT)


def limit(balancer: Balancer, which: int, value: int) -> None:
    """Set a limit of the running process, as `ulimit` does for one that is started."""
    assert balancer.process is not None
    _, most = resource.prlimit(balancer.process.pid, which)
    resource.prlimit(balancer.process.pid, which, (value, most))


async def left(writers: list[asyncio.StreamWriter]) -> None:
    """Close them all."""
    for writer in writers:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def median_s(balancer: Balancer, count: int = SMALL) -> float:
    """How long a small request takes now, one after the other; all must succeed."""
    seen = [await ask(balancer.port, request(stream=False, tokens=1)) for _ in range(count)]
    assert {each.outcome for each in seen} == {"ok"}
    return statistics.median(each.took_s for each in seen)


# -- files and disk ------------------------------------------------------------------------------------


async def test_after_file_descriptors_ran_out_every_request_is_served_within_5_s(tmp_path: Path) -> None:
    slow = ("--ttft", "0.05", "--tpot", "0.2", "--max-num-seqs", "1000")
    with (
        Engines(3, *slow) as engines,
        Balancer(tmp_path, patient(engines), "-q") as balancer,
    ):
        limit(balancer, resource.RLIMIT_NOFILE, 128)
        writers = []
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
            writer.write(stream_request(1000))
            writers.append(writer)
        await eventually(lambda: "no more files" in balancer.log(), within_s=10, what="they ran out")
        await left(writers)
        async with asyncio.timeout(5):
            while (await ask(balancer.port, request(stream=False, tokens=1))).outcome != "ok":
                await asyncio.sleep(0.05)
        await median_s(balancer)
        assert balancer.log().count("\n") == 1
        assert ejections(balancer) == 0, "no endpoint is to blame"
        and_nothing_is_left(balancer)


async def test_a_full_disk_under_the_log_touches_no_request(tmp_path: Path) -> None:
    with (
        Engines(3, *QUICK) as engines,
        Balancer(tmp_path, patient(engines)) as balancer,
    ):
        limit(balancer, resource.RLIMIT_FSIZE, len(balancer.log()) + 500)
        await median_s(balancer, 50)  # each connection is several lines of the log
        assert len(balancer.log()) <= balancer.log_path.stat().st_size
        written = len(balancer.log())
        await median_s(balancer, 5)
        assert len(balancer.log()) == written, "it is full"
        limit(balancer, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
        await median_s(balancer, 5)
        assert "client disconnect" in balancer.log()[written + 100 :], "there is room again"
        and_nothing_is_left(balancer)
        assert await asyncio.to_thread(balancer.stop) == 0


# -- memory --------------------------------------------------------------------------------------------

ENDLESS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "long-body": (b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n", bytes),
    "chunked-body": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", chunk),
    "body-until-the-end": (b"HTTP/1.1 200 OK\r\n\r\n", bytes),
    "events": (
        SSE_HEAD,
        lambda data: chunk(b'data: {"choices":[{"delta":{"content":"' + data + b'"}}]}\n\n'),
    ),
    "one-event": (SSE_HEAD, chunk),
}


def endless(kind: str) -> Script:
    """An engine whose answers do not end."""
    head, framed = ENDLESS[kind]
    piece = framed(b"x" * 60_000)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()

    return script


async def read_through(folder: Path, size: int) -> None:
    """Of each kind read so many bytes, and leave."""
    async with AsyncExitStack() as stack:
        engines = {
            kind: await stack.enter_async_context(ScriptedEngine(endless(kind))) for kind in sorted(ENDLESS)
        }
        config = settings([])
        config["clusters"] = {
            kind: {"endpoints": [{**engine.endpoint, "name": kind}]} for kind, engine in engines.items()
        }
        config["routes"] = [
            {"name": kind, "match": {"paths": [f"/{kind}/*"]}, "cluster": kind} for kind in engines
        ]
        its = await stack.enter_async_context(served(Balancer(folder, config)))

        async def most_memory(kind: str, size: int) -> float:
            reader, writer = await asyncio.open_connection("127.0.0.1", its.port)
            writer.write(request(path=f"/{kind}{PATH.decode()}".encode()))
            most, got = its.memory_mb(), 0
            while got < size:
                async with asyncio.timeout(10):
                    piece = await reader.read(MB)
                assert piece, kind
                if got // MB != (got + len(piece)) // MB:
                    most = max(most, its.memory_mb())
                got += len(piece)
            await left([writer])
            return most

        for kind in engines:  # the first bytes of each fill buffers that stay: 13-21 MB were seen
            await most_memory(kind, 8 * MB)
        for kind in engines:
            before = its.memory_mb()
            grown = await most_memory(kind, size) - before
            print(f"\n{kind}: {size / MB:.0f} MB, memory +{grown:.1f} MB")
            assert grown < 32, kind
        await asyncio.to_thread(and_nothing_is_left, its)


async def test_endless_answers_of_any_kind_take_no_memory(tmp_path: Path) -> None:
    await read_through(tmp_path, 128 * MB)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_answers_of_a_gigabyte_of_any_kind_take_no_memory(tmp_path: Path) -> None:
    await read_through(tmp_path, 1000 * MB)


# -- slow clients --------------------------------------------------------------------------------------


async def test_clients_that_do_not_read_hold_up_the_engine_and_nobody_else(tmp_path: Path) -> None:
    count, sent = 20, 0
    piece = chunk(SSE_EVENT.replace(b"x", b"x" * 16_000))

    async def as_fast_as_it_is_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(SSE_HEAD)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with AsyncExitStack() as stack:
        fast = await stack.enter_async_context(ScriptedEngine(as_fast_as_it_is_read))
        engines = stack.enter_context(Engines(2, *QUICK))
        config = patient(engines)
        config["clusters"]["fast"] = {"endpoints": [fast.endpoint]}
        config["routes"] = [
            {"name": "fast", "match": {"paths": ["/fast/*"]}, "cluster": "fast"},
            {"name": "others", "cluster": "engines"},
        ]
        balancer = await stack.enter_async_context(served(Balancer(tmp_path, config)))
        alone_s = await median_s(balancer)
        before = balancer.memory_mb()
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", balancer.port))
            sock.sendall(request(path=b"/fast/v1/chat/completions"))
        async with asyncio.timeout(20):
            while fast.open < count or not await stands_still(lambda: sent):
                await asyncio.sleep(0.05)
        together_s, more = await median_s(balancer), (balancer.memory_mb() - before) / count
        print(
            f"\n{count} clients that do not read: {more * 1024:.0f} kB each, {sent / count / MB:.1f} MB sent;"
            f" median of others {alone_s * 1e3:.1f} ms, then {together_s * 1e3:.1f} ms"
        )
        assert more < 1
        assert sent / count < 16 * MB  # what the kernel keeps
        assert together_s < 2 * alone_s + 0.25
        for sock in socks:
            sock.close()
        await asyncio.to_thread(and_nothing_is_left, balancer)


async def stands_still(number: Callable[[], int]) -> bool:
    """True if it is the same for a second."""
    before = number()
    await asyncio.sleep(1)
    return number() == before


async def test_clients_that_send_slowly_stop_nobody_else_and_hold_no_slot(tmp_path: Path) -> None:
    with (
        Engines(2, *QUICK) as engines,
        Balancer(tmp_path, patient(engines)) as balancer,
    ):
        alone_s = await median_s(balancer)
        whole = request()
        cuts = (20, whole.index(b"\r\n\r\n") + 10)  # within the head, within the body
        writers = []
        for number in range(400):
            _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
            writer.write(whole[: cuts[number % 2]])
            writers.append(writer)

        async def drip() -> None:
            for number in range(400):
                for place, writer in enumerate(writers[number % 8 :: 8]):
                    at = cuts[(number % 8 + place * 8) % 2] + number // 8
                    writer.write(whole[at : at + 1])
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        together_s = await median_s(balancer)
        print(f"\nslow senders: median {alone_s * 1e3:.1f} ms, then {together_s * 1e3:.1f} ms")
        assert together_s < 2 * alone_s + 0.25
        assert await asyncio.to_thread(balancer.in_flight) == 0
        dripping.cancel()
        await asyncio.wait([dripping])
        await left(writers)
        assert sum(engine["total"] for engine in engines.truth().values()) == 2 * SMALL
        and_nothing_is_left(balancer)


# -- time ----------------------------------------------------------------------------------------------


async def soaked(folder: Path, *, seconds: float, warm_s: float, grows_mb: float) -> None:
    """A steady load with clients that leave; memory after the warm-up, and what is left at the end."""
    with (
        Engines(3, *QUICK) as engines,
        Balancer(folder, patient(engines), "-q") as balancer,
    ):
        samples = []
        async with Load([balancer], per_s=50, tokens=10, leave=0.2, length_s=0.1) as load:
            await asyncio.sleep(warm_s)
            for _ in range(round(seconds)):
                samples.append(balancer.memory_mb())
                await asyncio.sleep(1)
            await load.drain(within_s=10)
        third = len(samples) // 3
        first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
        print(f"\nsoak: {dict(load.results)}, memory {first:.1f} MB, then {last:.1f} MB")
        assert set(load.results) == {"ok", "left"}
        assert last - first < grows_mb
        assert balancer.log() == ""
        and_nothing_is_left(balancer)


async def test_memory_does_not_grow_in_a_steady_load(tmp_path: Path) -> None:
    await soaked(tmp_path, seconds=6, warm_s=2, grows_mb=5)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_memory_does_not_grow_in_ten_minutes(tmp_path: Path) -> None:
    await soaked(tmp_path, seconds=480, warm_s=120, grows_mb=2)
