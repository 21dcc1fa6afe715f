"""Balancers under load while their Redis fails: no client sees it, and the counts are exact soon afterwards.

How long it took is printed: `pytest -s`.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lb_core.stores.ledger import COUNTS, LEDGER, OWNERS, key
from tests.fault_proxy import Fault, FaultProxy
from tests.redis.servers import RedisServer
from tests.system.balancer import Balancer, Engines
from tests.system.load import Load
from tests.system.sharing import PASSWORD, counted, opened, sharing
from tests.waiting import eventually, until

EXACT_S = 2.0
"""From the end of the fault; a failover may take 10 s. For a quarter of a second of it the load goes on."""

MOST_LINES = 7
"""In one log: three for a fault, two for corrected sums, two where a busy machine makes Redis slow."""

AWAY, BACK, SERVES = "is away", "is back: counts are shared again", "serves cluster engines again"
_AT_START = re.compile(r"Loading script|HTTP\(S\) proxy|reverse proxy to|ai-lb: cluster engines has 3")


@dataclass(frozen=True, slots=True)
class Size:
    """How much load there is, and how long a fault lasts."""

    per_s: float
    fault_s: float


pytestmark = pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(per_s=50, fault_s=0.8), id="short"),
        pytest.param(Size(per_s=100, fault_s=5.0), id="long", marks=pytest.mark.long),
    ],
)


class Site:
    """Two balancers under load."""

    def __init__(self, engines: Engines, balancers: Sequence[Balancer], load: Load) -> None:
        self.engines = engines
        self.balancers = balancers
        self.load = load

    async def settles(self, redis: RedisServer, *, says: Sequence[str]) -> None:
        """The fault is over: counts are exact soon, no client saw anything, each log has a few lines."""
        loop = asyncio.get_running_loop()
        over = loop.time()
        await asyncio.sleep(0.25)
        self.load.rest()  # what is open stays open: the sums can be compared
        await eventually(
            lambda: counted(redis) == opened(self.engines) != {},
            within_s=over + EXACT_S - loop.time(),
            what="the shared counts are what is open at the engines",
        )
        print(f"\nexact {loop.time() - over:.2f} s after the fault")
        await self.load.drain(within_s=30)
        await eventually(lambda: counted(redis) == {}, within_s=2, what="nothing is counted")
        await eventually(
            lambda: not any(balancer.in_flight() for balancer in self.balancers),
            within_s=2,
            what="no balancer believes that something is in flight",
        )
        print(dict(self.load.results))
        assert set(self.load.results) == {"ok"}, self.load.results
        self._said(says)

    def _said(self, says: Sequence[str]) -> None:
        """Each of `says` was said by somebody, and nobody talks about every request."""
        logs = [news(balancer) for balancer in self.balancers]
        for lines in logs:
            print("\n".join(lines))
            assert len(lines) <= MOST_LINES
        for text in says:
            assert any(text in line for lines in logs for line in lines), (text, logs)

    def counts_alone(self) -> bool:
        """Each balancer knows what it holds, and nothing else; a tenth may come or go between the looks."""
        before = sum(opened(self.engines).values())
        held = sum(balancer.in_flight() for balancer in self.balancers)
        after = sum(opened(self.engines).values())
        return 0.9 * min(before, after) <= held <= 1.1 * max(before, after)


def news(balancer: Balancer) -> list[str]:
    """The lines of a log that are neither about a client's connection nor about the start."""
    log = balancer.log()
    assert PASSWORD not in log
    assert "Traceback" not in log
    lines = re.findall(r"^\[[\d:.]+\] (.*)$", log, re.MULTILINE)
    return [line for line in lines if not _AT_START.match(line)]


@asynccontextmanager
async def loaded(folder: Path, redis_port: int, size: Size) -> AsyncIterator[Site]:
    """Streams of 2.2 s: what begins in a fault is open for as long as counts may be wrong after it."""
    with Engines(3, "--tpot", "0.15", "--ttft", "0.05", "--max-num-seqs", "400") as engines:
        async with (
            sharing(folder, engines, redis_port, 2) as balancers,
            Load(balancers, per_s=size.per_s, tokens=15) as load,
        ):
            await eventually(
                lambda: sum(opened(engines).values()) >= 20, within_s=20, what="20 requests are open"
            )
            yield Site(engines, balancers, load)


async def test_the_server_is_killed_and_comes_back(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        redis.kill()
        await asyncio.sleep(size.fault_s)
        await eventually(site.counts_alone, within_s=2, what="the balancers together hold what is open")
        await asyncio.to_thread(redis.start)
        await site.settles(redis, says=[AWAY, BACK])


async def test_the_server_restarts_empty(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        redis.kill()
        await asyncio.to_thread(redis.start)
        await site.settles(redis, says=[AWAY, BACK])


async def test_the_server_is_frozen(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        redis.freeze()
        await asyncio.sleep(size.fault_s)
        redis.thaw()
        await site.settles(redis, says=[AWAY, BACK])


@pytest.mark.parametrize("command", ["SCRIPT FLUSH", "FLUSHALL"])
async def test_the_server_forgets(tmp_path: Path, redis: RedisServer, size: Size, command: str) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        redis.client.execute_command(*command.split())
        await site.settles(redis, says=[])


async def test_a_replica_that_lags_takes_over(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    redis.client.config_set("repl-diskless-sync-delay", 0)
    async with FaultProxy(("127.0.0.1", redis.port)) as replication, FaultProxy(replication.target) as switch:
        source = ("--replicaof", f"127.0.0.1 {replication.port}", "--masterauth", PASSWORD)
        replica = RedisServer(*source, password=PASSWORD)
        try:
            await asyncio.to_thread(replica.start)
            await until(lambda: replica.client.info("replication")["master_link_status"] == "up", within_s=10)
            async with loaded(tmp_path, switch.port, size) as site:
                await replication.set(Fault.REFUSE)
                await asyncio.sleep(size.fault_s)
                assert counted(replica) != counted(redis)
                redis.kill()
                switch.switch(("127.0.0.1", replica.port))
                await asyncio.sleep(0.5)
                replica.client.execute_command("REPLICAOF", "NO", "ONE")
                await site.settles(replica, says=[AWAY, BACK])
        finally:
            replica.stop()


async def test_the_memory_is_full(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        redis.client.config_set("maxmemory", "1mb")
        await asyncio.sleep(size.fault_s)
        redis.client.config_set("maxmemory", "0")
        await site.settles(redis, says=["answers OOM", SERVES])


async def test_the_password_changes(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        redis.client.config_set("requirepass", "another")
        redis.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await asyncio.sleep(size.fault_s)
        redis.client.config_set("requirepass", PASSWORD)
        await site.settles(redis, says=["connection was lost", "answers WRONGPASS", BACK])


@pytest.mark.parametrize(
    "kind",
    [COUNTS, pytest.param(OWNERS, marks=pytest.mark.long), pytest.param(LEDGER, marks=pytest.mark.long)],
)
async def test_a_key_of_the_wrong_type_is_in_our_place(
    tmp_path: Path, redis: RedisServer, size: Size, kind: str
) -> None:
    async with loaded(tmp_path, redis.port, size) as site:
        name = key("engines", kind)
        if kind == LEDGER:
            name = next(redis.client.scan_iter(match=name + "*"))
        redis.client.set(name, "foreign")
        await asyncio.sleep(size.fault_s)
        assert redis.client.get(name) == "foreign"
        redis.client.delete(name)
        await site.settles(redis, says=["answers WRONGTYPE", f"The key {name}", SERVES])


async def test_the_server_is_absent_at_the_start(tmp_path: Path, redis: RedisServer, size: Size) -> None:
    redis.kill()
    async with loaded(tmp_path, redis.port, size) as site:
        await asyncio.sleep(size.fault_s)
        await asyncio.to_thread(redis.start)
        await site.settles(redis, says=[AWAY, BACK])
