"""Clients leave when they like, also during the call: nothing is left behind."""

import asyncio
import random

import pytest

from tests.core.build import endpoints
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import RedisServer, counts_in
from tests.waiting import until

SHARE_THAT_LEAVES = 0.3


async def leave_at_random(fleet: Fleet, server: RedisServer, count: int) -> None:
    stores = [await fleet.add(server.config) for _ in range(3)]
    decision, at_once = equal(*endpoints(5)), asyncio.Semaphore(200)
    lowest = 0

    async def request(number: int) -> None:
        store, name = random.choice(stores), f"r-{number}"
        await store.acquire(name, decision, random.random())
        try:
            await asyncio.sleep(random.expovariate(1 / 0.005))
        finally:
            assert store.release(name)

    async def client(number: int) -> None:
        async with at_once:
            task = asyncio.create_task(request(number))
            if random.random() < SHARE_THAT_LEAVES:
                # Most of the time that an acquire takes here goes by in less than 10 ms.
                await asyncio.wait([task], timeout=random.choice([0, 0.001, random.uniform(0, 0.01)]))
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def sample() -> None:
        nonlocal lowest
        while True:
            lowest = min(0, lowest, *counts_in(server.client, "c").values())
            await asyncio.sleep(0.05)

    sampling = asyncio.create_task(sample())
    for first in range(0, count, 5000):
        await asyncio.gather(*(client(number) for number in range(first, min(first + 5000, count))))
    await until(lambda: counts_in(server.client, "c") == {}, within_s=2)
    await asyncio.sleep(0)
    sampling.cancel()
    assert lowest == 0
    assert fleet.exact(server)
    for store in stores:
        assert dict(store._books.own) == {}
        assert store.stats.fsck_fixed == 0
        assert not store._books.pending


async def test_nothing_is_left_of_5000_requests(fleet: Fleet, server: RedisServer) -> None:
    await leave_at_random(fleet, server, 5000)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_nothing_is_left_of_100_000_requests(fleet: Fleet, server: RedisServer) -> None:
    await leave_at_random(fleet, server, 100_000)
