"""What befalls the process itself: death, pauses, a script edited under it, files and disk that run out."""

import asyncio
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from lb_core.stores.ledger import OWNERS, key
from tests.redis.servers import RedisServer, counts_in, redis_server
from tests.system.balancer import ADDON, Balancer, Engines
from tests.system.clients import PATIENT, Clients, ask, request, settings
from tests.system.load import Load, stream_request
from tests.waiting import eventually

RECLAIM_S = 7.0
"""A lease of 5 s, a heartbeat of 1 s, and a second for the others to see it."""
LONG_STREAMS = ("--ttft", "0.05", "--tpot", "0.2", "--max-num-seqs", "400")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def shared(engines: Engines, redis: RedisServer) -> Any:
    """Counts in Redis."""
    at = {"serviceFQDN": "127.0.0.1", "servicePort": redis.port}
    return settings(engines.endpoints(), **PATIENT) | {"lb_config": at}


def opened(engines: Engines) -> dict[str, int]:
    """Requests open at each engine, zeros left out: the truth."""
    return {name: engine["open"] for name, engine in engines.truth().items() if engine["open"]}


def counted(redis: RedisServer) -> dict[str, int]:
    return dict(counts_in(redis.client, "engines"))


def owners(redis: RedisServer) -> set[str]:
    """The balancers that have a lease."""
    return set(redis.client.zrange(key("engines", OWNERS), 0, -1))


def send(balancer: Balancer, number: int) -> None:
    assert balancer.process is not None
    balancer.process.send_signal(number)


class Streams:
    """Long streams, as many as were begun; they are left at the end of the block, or by `leave`."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def begin(self, balancer: Balancer, count: int) -> None:
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
            writer.write(stream_request(10_000))
            self._writers.append(writer)

    async def leave(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


async def test_after_all_balancers_are_killed_a_new_one_of_the_same_name_counts_from_zero(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        engines = stack.enter_context(Engines(3, *LONG_STREAMS))
        balancers = [stack.enter_context(Balancer(tmp_path, shared(engines, redis))) for _ in range(2)]
        async with Load(balancers, per_s=30, tokens=1000):
            await eventually(lambda: sum(counted(redis).values()) > 20, within_s=5, what="they are counted")
            for balancer in balancers:
                send(balancer, signal.SIGKILL)
        dead = owners(redis)
        again = balancers[0]
        await asyncio.to_thread(again.start)  # the same command, so the same configuration and address
        await eventually(lambda: counted(redis) == {}, within_s=RECLAIM_S, what="what the dead held is back")
        assert (await ask(again.port, request(tokens=2))).outcome == "ok"
        streams = await stack.enter_async_context(Streams())
        await streams.begin(again, 1)
        await eventually(lambda: counted(redis) == opened(engines) != {}, within_s=3, what="it counts")
        (alive,) = owners(redis)
        assert alive not in dead
        assert all(0 < redis.client.ttl(name) <= 3600 for name in redis.client.scan_iter("*"))


async def test_a_balancer_that_is_told_to_end_refuses_at_once_and_leaves_no_trace_in_redis(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        engines = stack.enter_context(Engines(2, *LONG_STREAMS))
        balancer = stack.enter_context(Balancer(tmp_path, shared(engines, redis)))
        streams = await stack.enter_async_context(Streams())
        await streams.begin(balancer, 10)
        await eventually(lambda: sum(counted(redis).values()) == 10, within_s=5, what="they are counted")
        send(balancer, signal.SIGTERM)
        async with asyncio.timeout(3):
            while (seen := await ask(balancer.port, request(stream=False, tokens=1))).status == 200:
                pass
        assert seen.status in (0, 503)
        assert sum(counted(redis).values()) == 10, "those that run go on"
        send(balancer, signal.SIGTERM)
        assert balancer.process is not None
        assert await asyncio.to_thread(balancer.process.wait, 4) == 0
        assert counted(redis) == {}
        assert owners(redis) == set()
        await eventually(lambda: opened(engines) == {}, within_s=2, what="the engines see it")


async def test_a_balancer_that_was_stopped_for_8_s_is_taken_off_and_puts_its_requests_back(
    tmp_path: Path, redis: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        engines = stack.enter_context(Engines(3, *LONG_STREAMS))
        sleeper, other = [stack.enter_context(Balancer(tmp_path, shared(engines, redis))) for _ in range(2)]
        streams = await stack.enter_async_context(Streams())
        await streams.begin(sleeper, 12)
        await streams.begin(other, 6)
        await eventually(lambda: sum(counted(redis).values()) == 18, within_s=5, what="all are counted")
        began = time.monotonic()
        send(sleeper, signal.SIGSTOP)
        try:
            await eventually(
                lambda: sum(counted(redis).values()) == 6, within_s=RECLAIM_S, what="they are taken off"
            )
            await asyncio.sleep(8 - (time.monotonic() - began))
            assert sum(counted(redis).values()) == 6
        finally:
            send(sleeper, signal.SIGCONT)
        lowest = 6

        def are_back() -> bool:
            nonlocal lowest
            counts = counted(redis)
            lowest = min(lowest, *counts.values())
            return counts == opened(engines) and sum(counts.values()) == 18

        await eventually(are_back, within_s=2, what="all are counted again")
        assert lowest > 0
        assert (await ask(sleeper.port, request(tokens=2))).outcome == "ok"
        await streams.leave()
        await eventually(lambda: counted(redis) == {}, within_s=3, what="nothing is counted")
        assert "Traceback" not in sleeper.log() + other.log()


BLOCKER = """\
import time


def request(flow):
    if flow.request.path == "/block":
        time.sleep(2)
"""


async def test_an_event_loop_that_is_blocked_for_2_s_loses_no_lease(
    tmp_path: Path, redis: RedisServer
) -> None:
    script = tmp_path / "blocker.py"
    script.write_text(BLOCKER)
    async with AsyncExitStack() as stack:
        engines = stack.enter_context(Engines(3, *LONG_STREAMS))
        blocked = stack.enter_context(Balancer(tmp_path, shared(engines, redis), "-s", str(script)))
        other = stack.enter_context(Balancer(tmp_path, shared(engines, redis)))
        streams = await stack.enter_async_context(Streams())
        await streams.begin(blocked, 9)
        await streams.begin(other, 3)
        await eventually(lambda: sum(counted(redis).values()) == 12, within_s=5, what="all are counted")
        began = time.monotonic()
        blocks = asyncio.create_task(ask(blocked.port, request(path=b"/block", stream=False)))
        waits = asyncio.create_task(ask(blocked.port, request(stream=False, tokens=1)))
        sums = set()
        while time.monotonic() - began < 2.5:
            sums.add(sum(counted(redis).values()))
            await asyncio.sleep(0.02)
        assert (await blocks).took_s > 1.9
        assert (await waits).outcome == "ok"
        assert min(sums) == 12, "no lease was lost"
        await eventually(lambda: sum(counted(redis).values()) == 12, within_s=2, what="nothing is left over")
        await streams.leave()
        await eventually(lambda: counted(redis) == {}, within_s=3, what="nothing is counted")
        assert "Traceback" not in blocked.log() + other.log()


async def edited(folder: Path, redis: RedisServer, text: str) -> tuple[Counter[str], str]:
    """Write this over the script of a balancer under load; what clients saw afterwards, and the log.

    The streams that run meanwhile must give their slots back, and nobody else may answer.
    """
    script = folder / "ai_lb.py"
    shutil.copy(ADDON, script)
    async with AsyncExitStack() as stack:
        engines = stack.enter_context(Engines(3, *LONG_STREAMS))
        balancer = stack.enter_context(Balancer(folder, shared(engines, redis), "-q", script=script))
        streams = await stack.enter_async_context(Streams())
        await streams.begin(balancer, 9)
        await eventually(lambda: sum(counted(redis).values()) == 9, within_s=5, what="they are counted")
        old = owners(redis)
        async with Clients(balancer, per_s=20, tokens=1) as clients:
            script.write_text(text)
            await eventually(
                lambda: not old & owners(redis),
                within_s=RECLAIM_S,
                what="what the old script held is back",
            )
            await asyncio.sleep(1)
            meanwhile = len(clients.seen)
            await asyncio.sleep(1)
        statuses = Counter(each.status for each in clients.seen)
        print(f"\nedited: {statuses}")
        assert set(statuses) <= {200, 500, 502, 503}  # 503: it came while the old script ended
        assert statuses[200] == sum(engine["finished"] for engine in engines.truth().values())
        await streams.leave()
        await eventually(lambda: counted(redis) == {}, within_s=3, what="nothing is counted")
        await eventually(lambda: opened(engines) == {}, within_s=3, what="nothing is open")
        return Counter(each.outcome for each in clients.seen[meanwhile:]), balancer.log()


async def test_a_script_that_is_edited_while_it_runs_serves_on_and_gives_back_what_it_held(
    tmp_path: Path, redis: RedisServer
) -> None:
    outcomes, log = await edited(tmp_path, redis, ADDON.read_text() + "\n# edited\n")
    assert set(outcomes) == {"ok"}, outcomes
    assert log == ""


async def test_a_script_that_is_edited_into_a_syntax_error_serves_nobody_and_gives_back_what_it_held(
    tmp_path: Path, redis: RedisServer
) -> None:
    outcomes, log = await edited(tmp_path, redis, "def broken(:\n")
    assert set(outcomes) == {"502"}, outcomes
    assert log.count("error in script") == log.count("Traceback") == 1
