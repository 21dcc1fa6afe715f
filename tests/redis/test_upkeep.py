"""What the rounds of a store do when there is much to do, or something to correct."""

import asyncio

import pytest

from lb_core.stores.ledger import COUNTS, OWNERS, key
from tests.core.build import endpoints
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import RedisServer, counts_in, ledgers_in
from tests.waiting import until

MANY = 3000
"""Slots: several chunks."""


async def test_many_slots_are_told_anew_in_chunks(fleet: Fleet, server: RedisServer) -> None:
    stores = [await fleet.add(server.config) for _ in range(2)]
    decision = equal(*endpoints(8))
    await asyncio.gather(*(fleet.acquire(stores[number % 2], decision) for number in range(MANY)))
    server.client.config_set("slowlog-log-slower-than", 20_000)
    server.client.slowlog_reset()
    server.client.flushall()
    await until(lambda: fleet.exact(server), within_s=2)
    for name in list(fleet.held)[::2]:
        fleet.release(name)
    await until(lambda: fleet.exact(server), within_s=2)
    assert not [entry for entry in server.client.slowlog_get() if b"EVAL" in entry["command"]]


async def test_many_slots_of_a_dead_balancer_come_back_once(fleet: Fleet, server: RedisServer) -> None:
    stores = [await fleet.add(server.config, beat_s=0.2, lease_s=1.0) for _ in range(3)]
    decision = equal(*endpoints(8))
    await asyncio.gather(*(fleet.acquire(stores[number % 3], decision) for number in range(MANY)))
    await fleet.crash(stores[0])
    await until(lambda: fleet.exact(server), within_s=4)
    await until(lambda: sum(store.stats.reaped for store in fleet.stores) == MANY // 3)
    assert len(ledgers_in(server.client, "c")) == 2


async def test_wrong_sums_are_corrected_by_one_balancer(fleet: Fleet, server: RedisServer) -> None:
    stores = [await fleet.add(server.config, beat_s=0.2, fsck_s=0.5) for _ in range(3)]
    for store in stores:
        await fleet.acquire(store, equal(*endpoints(3)))
    await until(lambda: all(store.stats.resyncs >= 2 and not store._upkeep._check_due for store in stores))
    server.client.zincrby(key("c", COUNTS), 7, "e0")
    server.client.zadd(key("c", COUNTS), {"nobody": 3})
    await until(lambda: fleet.exact(server), within_s=3)
    await until(lambda: sum(store.stats.fsck_fixed for store in stores) == 2)


@pytest.mark.parametrize("first", ["beat", "acquire", "resync"])
async def test_whoever_was_left_out_of_the_sums_has_them_corrected(
    fleet: Fleet, server: RedisServer, first: str
) -> None:
    one, other = [await fleet.add(server.config) for _ in range(2)]
    here, there = endpoints(2)
    for store, slots in ((one, 10), (other, 8)):
        for _ in range(slots):
            await fleet.acquire(store, equal(here))
    await until(lambda: one.stats.resyncs >= 2 and other.stats.resyncs >= 2)
    lost = server.client.pipeline()  # as after the loss of the owners' list, when only one has come back
    lost.zrem(key("c", OWNERS), other.owner)
    lost.zadd(key("c", COUNTS), {here.name: 10})
    lost.execute()
    if first == "acquire":
        await fleet.acquire(other, equal(there))
    elif first == "resync":
        other._upkeep.suspect()
    await until(lambda: fleet.exact(server), within_s=2)


async def test_after_a_refused_move_counts_are_shared_again_without_another_move(
    fleet: Fleet, own_server: RedisServer
) -> None:
    store = await fleet.add(own_server.config)
    here, there = endpoints(2)
    name = await fleet.acquire(store, equal(here))
    own_server.client.config_set("maxmemory", "1mb")
    assert await store.move(name, there)
    assert not store.stats.shared
    own_server.client.config_set("maxmemory", "0")
    await until(lambda: store.stats.shared and counts_in(own_server.client, "c") == {there.name: 1})


async def test_every_balancer_hears_the_others_within_a_beat(fleet: Fleet, server: RedisServer) -> None:
    busy, idle = [await fleet.add(server.config) for _ in range(2)]
    for _ in range(6):
        await fleet.acquire(busy, equal(*endpoints(3)))
    assert dict(busy.in_flight) == {"e0": 2, "e1": 2, "e2": 2}
    await until(lambda: dict(idle.in_flight) == {"e0": 2, "e1": 2, "e2": 2})


async def test_releases_are_told_together(fleet: Fleet, server: RedisServer) -> None:
    store = await fleet.add(server.config)
    names = [await fleet.acquire(store, equal(*endpoints(3))) for _ in range(100)]
    server.client.config_resetstat()
    for name in names:
        fleet.release(name)
    assert not store.in_flight
    await until(lambda: counts_in(server.client, "c") == {})
    assert server.client.info("commandstats")["cmdstat_evalsha"]["calls"] <= 3
