"""Defects of the original (the numbers are those of the list in the reference), not to be had here."""

import asyncio
import random
from collections import Counter

import pytest

from lb_core.config.model import RedisConfig
from lb_core.stores.ledger import COUNTS, LEDGER, OWNERS, key
from lb_core.types import Choice, Decision, Tier
from tests.core.build import endpoint, endpoints
from tests.fault_proxy import Fault, FaultProxy
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import RedisServer, counts_in, ledgers_in, owner_of
from tests.waiting import until


async def test_h1_what_a_killed_balancer_held_comes_back(fleet: Fleet, server: RedisServer) -> None:
    for _ in range(3):
        store = await fleet.add(server.config, beat_s=0.2, lease_s=1.0)
        for _ in range(30):
            await fleet.acquire(store, equal(*endpoints(4)))
    dead = fleet.stores[1]
    await fleet.crash(dead)
    assert sum(counts_in(server.client, "c").values()) == 90
    assert await until(lambda: fleet.exact(server), within_s=1 + 0.2 + 1) > 0.5
    assert sum(counts_in(server.client, "c").values()) == 60
    assert dead.owner not in ledgers_in(server.client, "c")
    await until(lambda: sum(store.stats.reaped for store in fleet.stores) == 30)


async def test_h1_a_balancer_that_only_slept_takes_back_what_it_holds(
    fleet: Fleet, server: RedisServer
) -> None:
    sleeper, other = [await fleet.add(server.config, beat_s=0.2, lease_s=1.0) for _ in range(2)]
    for store in (sleeper, other):
        for _ in range(10):
            await fleet.acquire(store, equal(*endpoints(4)))
    server.client.zadd(key("c", OWNERS), {sleeper.owner: 1})
    assert await other._ledger.reap(sleeper.owner) == 10
    await until(lambda: fleet.exact(server), within_s=2)
    fleet.release(next(iter(fleet.held)))
    await until(lambda: fleet.exact(server), within_s=2)


async def test_h1_everything_expires_when_nobody_is_left(fleet: Fleet, server: RedisServer) -> None:
    store = await fleet.add(server.config)
    for _ in range(10):
        await fleet.acquire(store, equal(*endpoints(4)))
    await fleet.crash(store)
    names = list(server.client.scan_iter(match="{ai_lb:c}*"))
    assert len(names) == 3
    assert all(0 < server.client.ttl(name) <= 3600 for name in names)


async def test_h2_no_count_is_ever_below_zero(fleet: Fleet, server: RedisServer) -> None:
    stores = [await fleet.add(server.config) for _ in range(2)]
    lowest: list[int] = []

    async def sample() -> None:
        while True:
            lowest.extend(counts_in(server.client, "c").values())
            lowest.extend(count for store in stores for count in store.in_flight.values())
            await asyncio.sleep(0.005)

    sampling = asyncio.create_task(sample())
    fleet.load(per_s=300, length_s=0.1)
    for _ in range(3):
        await asyncio.sleep(0.2)
        server.client.flushall()
    members = endpoints(2)
    name = await fleet.acquire(stores[0], equal(members[0]))
    server.client.delete(key("c", COUNTS))  # as if the endpoint had left with requests in flight
    fleet.release(name)
    await asyncio.sleep(0.1)
    sampling.cancel()
    assert lowest
    assert min(lowest) > 0


async def test_h3_a_client_that_leaves_during_the_call_leaves_nothing(
    fleet: Fleet, server: RedisServer
) -> None:
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        # The beat is slow, so that it cannot be a resync that helps.
        store = await fleet.add(RedisConfig("127.0.0.1", proxy.port), beat_s=60)
        await store.acquire("first", equal(*endpoints(4)), 0.0)
        store.release("first")
        await until(lambda: store.stats.resyncs >= 2)
        await asyncio.sleep(0.3)
        proxy.latency_s = 0.05
        for number in range(40):
            task = asyncio.create_task(store.acquire(f"x{number}", equal(*endpoints(4)), random.random()))
            await asyncio.sleep(random.uniform(0, 0.01))
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
        await until(lambda: fleet.exact(server), within_s=2)
        assert store.stats.fallbacks == 0


async def test_h3_when_redirecting_fails_the_slot_moves_and_is_given_back(
    fleet: Fleet, server: RedisServer
) -> None:
    store = await fleet.add(server.config)
    here, there = endpoints(2)
    await store.acquire("1", equal(here), 0.0)
    assert await store.move("1", there)
    assert counts_in(server.client, "c") == {"e1": 1}
    store.release("1")
    await until(lambda: counts_in(server.client, "c") == {})


async def test_h3_a_call_without_an_answer_is_undone_if_it_was_carried_out(
    fleet: Fleet, server: RedisServer
) -> None:
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        store = await fleet.add(RedisConfig("127.0.0.1", proxy.port))
        await proxy.set(Fault.FREEZE)
        names = [await fleet.acquire(store, equal(*endpoints(4))) for _ in range(3)]
        fleet.release(names[0])
        await proxy.set(Fault.NONE)
        await until(lambda: fleet.exact(server), within_s=2)
        assert sum(counts_in(server.client, "c").values()) == 2


async def test_h4_every_cluster_is_served_by_a_redis_cluster(
    fleet: Fleet, cluster: list[RedisServer]
) -> None:
    names = [f"pool-{number}" for number in range(6)]
    owners = {name: owner_of(key(name, COUNTS), cluster) for name in names}
    assert len(set(map(id, owners.values()))) == 3, "the pools should lie on all masters"
    for name in names:
        store = await fleet.add(cluster[0].url("redis+cluster"), cluster=name)
        for _ in range(5):
            await fleet.acquire(store, equal(*endpoints(4)))
        assert await store.move(next(reversed(fleet.held)), endpoints(4)[0])
        assert store.stats.fallbacks == 0
    assert await fleet.stores[0]._ledger.fsck() == 0
    assert await fleet.stores[0]._ledger.reap("nobody") == 0
    assert all(store.stats.errors == 0 for store in fleet.stores)
    for name in names:
        assert sum(counts_in(owners[name].client, name).values()) == 5


async def test_h4_a_slot_that_moves_to_another_master_is_followed(
    fleet: Fleet, cluster: list[RedisServer]
) -> None:
    store = await fleet.add(cluster[0].url("redis+cluster"), cluster="moving")
    old = owner_of(key("moving", COUNTS), cluster)
    new = next(server for server in cluster if server is not old)
    slot = old.client.execute_command("CLUSTER", "KEYSLOT", key("moving", COUNTS))
    fleet.load()
    await asyncio.sleep(0.5)
    # What is left behind on the old master is lost; the resync brings it back.
    new_id = new.client.execute_command("CLUSTER", "MYID")
    old.client.flushall()
    for server in (new, old):
        server.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
    await asyncio.sleep(1)
    await fleet.rest()
    await until(lambda: fleet.exact(new, "moving"), within_s=10)
    assert not fleet.raised
    assert store.stats.shared
    await store.close()
    new.client.flushall()
    old_id = old.client.execute_command("CLUSTER", "MYID")
    for server in (old, new):
        server.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", old_id)


async def test_h9_without_the_server_choices_are_uniform(fleet: Fleet, own_server: RedisServer) -> None:
    own_server.kill()
    store = await fleet.add(own_server.config)
    found: Counter[str] = Counter()
    for number in range(5000):
        lease = await store.acquire(f"{number}", equal(*endpoints(5)), random.random())
        found[lease.endpoint.name] += 1
        store.release(f"{number}")
    assert store.stats.fallbacks == 5000
    assert len(found) == 5
    assert max(found.values()) < 1.15 * min(found.values())


async def test_h19_two_routes_to_one_cluster_have_one_count(fleet: Fleet, server: RedisServer) -> None:
    one, other = [await fleet.add(server.config) for _ in range(2)]
    members = endpoints(2)
    await fleet.acquire(one, equal(members[0]))
    by_another_route = Decision("other", (Tier(tuple(map(Choice, members)), "r"),))
    lease = await other.acquire("x", by_another_route, 0.0)
    assert lease.endpoint == members[1], "the first one has the other route's request"
    assert dict(other.in_flight) == {"e0": 1, "e1": 1}


@pytest.mark.parametrize("kind", [COUNTS, OWNERS, LEDGER])
def test_h4_all_keys_of_a_cluster_have_one_hash_tag(kind: str) -> None:
    assert key("pool", kind).startswith("{ai_lb:pool}:")


async def test_the_limit_holds_over_all_balancers(fleet: Fleet, server: RedisServer) -> None:
    stores = [await fleet.add(server.config) for _ in range(3)]
    decision = equal(endpoint("a", max_in_flight=5), endpoint("b"), max_in_flight=10)
    calls = [fleet.acquire(random.choice(stores), decision) for _ in range(40)]
    placed = [name for name in await asyncio.gather(*calls, return_exceptions=True) if isinstance(name, str)]
    assert len(placed) == 15
    assert counts_in(server.client, "c") == {"a": 5, "b": 10}
