"""Clients leave real balancers when they like, also while Redis is asked: nothing stays counted.

Numbers seen are printed: `pytest -s`.
"""

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fault_proxy import FaultProxy
from tests.redis.servers import RedisServer, counts_in, ledgers_in
from tests.system.balancer import Balancer, Engines
from tests.system.load import Load
from tests.system.sharing import PASSWORD, counted, opened, sharing
from tests.waiting import eventually

SHARE_THAT_LEAVES = 0.3
LENGTH_S = 0.1
"""As long as most requests here take: 5 to 30 ms of it Redis, 25 ms the engine, the rest the busy machine."""


class Watch:
    """Looks at all counts every 50 ms: the shared ones, and those of the balancers in turn."""

    def __init__(self, redis: RedisServer, balancers: Sequence[Balancer]) -> None:
        self.looks = 0
        self.lowest = 0.0
        self.highest = 0.0
        self._redis = redis
        self._balancers = balancers

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            shared = await asyncio.to_thread(counts_in, self._redis.client, "engines")
            balancer = self._balancers[self.looks % len(self._balancers)]
            shown = await asyncio.to_thread(balancer.samples, "ai_lb_in_flight")
            self.looks += 1
            self.lowest = min(self.lowest, *shared.values(), *shown)
            self.highest = max(self.highest, *shared.values(), *shown)
            await asyncio.sleep(0.05)


async def leave_at_random(folder: Path, redis: RedisServer, *, requests: int, within_s: float) -> None:
    loop = asyncio.get_running_loop()
    with Engines(3, "--ttft", "0.01", "--tpot", "0.005", "--max-num-seqs", "400") as engines:
        async with (
            FaultProxy(("127.0.0.1", redis.port)) as way,
            sharing(folder, engines, way.port, 3, "--set", "termlog_verbosity=warn") as balancers,
        ):
            way.latency_s, way.jitter_s = 0.005, 0.025
            watch = Watch(redis, balancers)
            watching, began = asyncio.create_task(watch.run()), loop.time()
            async with Load(
                balancers,
                per_s=math.inf,
                tokens=4,
                leave=SHARE_THAT_LEAVES,
                length_s=LENGTH_S,
                total=requests,
                at_once=16,
            ) as load:
                await load.all(within_s=within_s)
            ended = loop.time()
            await eventually(
                lambda: counted(redis) == opened(engines) == {},
                within_s=2,
                what="nothing is counted, and nothing is open",
            )
            zero = loop.time()
            await eventually(
                lambda: not any(balancer.in_flight() for balancer in balancers),
                within_s=2,
                what="no balancer believes that something is in flight",
            )
            assert not watching.done(), watching.exception()
            watching.cancel()
            placed = sum(balancer.metric("ai_lb_requests_total") for balancer in balancers)
            asked = sum(engine["total"] for engine in engines.truth().values())
            print(f"\n{requests / (ended - began):.0f} requests/s, {dict(load.results)}")
            print(f"{placed - asked:.0f} left between the decision and the endpoint")
            print(f"zero after {zero - ended:.2f} s; {watch.looks} looks: {watch.lowest} to {watch.highest}")
            assert set(load.results) == {"ok", "left"}, load.results
            assert load.results["left"] > 0.2 * requests
            assert placed - asked > 0.05 * requests, "many left while Redis was asked"
            assert watch.lowest == 0 < watch.highest
            assert not any(ledgers_in(redis.client, "engines").values())
            for balancer in balancers:
                assert balancer.metric("ai_lb_store_events", event="fsck_fixed") == 0
                assert "Traceback" not in balancer.log()
                assert PASSWORD not in balancer.log()


@pytest.mark.timeout(300)
async def test_nothing_is_left_of_5000_requests(tmp_path: Path, redis: RedisServer) -> None:
    await leave_at_random(tmp_path, redis, requests=5000, within_s=250)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_nothing_is_left_of_100_000_requests(tmp_path: Path, redis: RedisServer) -> None:
    await leave_at_random(tmp_path, redis, requests=100_000, within_s=1700)
