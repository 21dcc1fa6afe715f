"""Whatever happens to the server: no client sees an error, and the counts are exact soon afterwards."""

import asyncio
import logging
import random
import sys
import time

import pytest

from lb_core.config.model import RedisConfig
from lb_core.stores.ledger import COUNTS, LEDGER, OWNERS, key
from tests.core.build import endpoint, endpoints
from tests.fault_proxy import Fault, FaultProxy
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import PASSWORD, RedisServer, counts_in, redis_server
from tests.waiting import until

BALANCERS = 3
EXACT_S = 2.0
"""From the end of the fault. Half a second of it is the load that goes on meanwhile."""


@pytest.fixture(autouse=True)
def no_secrets_and_no_faults_of_ours(caplog: pytest.LogCaptureFixture) -> object:
    caplog.set_level(logging.DEBUG)
    yield
    assert PASSWORD not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


async def loaded(fleet: Fleet, config: RedisConfig) -> None:
    for _ in range(BALANCERS):
        await fleet.add(config)
    fleet.load()
    await until(lambda: len(fleet.held) > 20)


async def settles(
    fleet: Fleet, server: RedisServer, *, within_s: float = EXACT_S, load_s: float = 0.5
) -> None:
    """The load goes on a little, and then nothing is wrong within the time."""
    await asyncio.sleep(load_s)
    await fleet.exact_within(server, within_s - load_s)
    assert not fleet.raised
    assert fleet.held
    for name in tuple(fleet.held):
        fleet.release(name)
    await until(lambda: counts_in(server.client, "c") == {}, within_s=2)
    for store in fleet.stores:
        assert store.stats.fsck_fixed == 0
    await until(lambda: all(not store.in_flight for store in fleet.stores))


async def test_nothing_wrong_without_a_fault(fleet: Fleet, server: RedisServer) -> None:
    await loaded(fleet, server.config)
    await settles(fleet, server)
    assert not any(store.stats.fallbacks or store.stats.errors for store in fleet.stores)


async def test_the_server_is_killed_and_comes_back_empty(
    fleet: Fleet, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await loaded(fleet, own_server.config)
    own_server.kill()
    await asyncio.sleep(1.5)
    await until(lambda: sum(store.stats.fallbacks for store in fleet.stores) > 50)
    own_server.start()
    await settles(fleet, own_server)
    away = [record.levelname for record in caplog.records if record.name == "lb_core.stores.link"]
    assert away == ["WARNING"] * BALANCERS + ["INFO"] * BALANCERS, "once at the start, once at the end"


async def test_the_server_restarts_empty_at_once(fleet: Fleet, own_server: RedisServer) -> None:
    await loaded(fleet, own_server.config)
    own_server.kill()
    own_server.start()
    await settles(fleet, own_server)


@pytest.mark.parametrize("length_s", [1.0, pytest.param(5.0, marks=pytest.mark.long)])
async def test_the_server_is_frozen(fleet: Fleet, own_server: RedisServer, length_s: float) -> None:
    await loaded(fleet, own_server.config)
    own_server.freeze()
    started = asyncio.get_running_loop().time()
    for _ in range(40):
        fleet.release(await fleet.acquire(fleet.stores[0], equal(*endpoints(2))))
    assert asyncio.get_running_loop().time() - started < 5, "after two time-outs nobody waits"
    await asyncio.sleep(length_s)
    own_server.thaw()
    await settles(fleet, own_server)


@pytest.mark.parametrize("command", ["SCRIPT FLUSH", "FLUSHALL"])
async def test_the_server_forgets(fleet: Fleet, server: RedisServer, command: str) -> None:
    await loaded(fleet, server.config)
    server.client.execute_command(*command.split())
    await settles(fleet, server)
    assert sum(store.stats.fallbacks for store in fleet.stores) == 0, "nobody noticed"


async def test_one_of_the_keys_is_lost(fleet: Fleet, server: RedisServer) -> None:
    for kind in (COUNTS, OWNERS, LEDGER):
        await loaded(fleet, server.config)
        name = key("c", kind) + (fleet.stores[0].owner if kind == LEDGER else "")
        server.client.delete(name)
        await asyncio.sleep(0.3)
        await fleet.exact_within(server, EXACT_S)
        assert not fleet.raised


async def test_the_memory_is_full(
    fleet: Fleet, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await loaded(fleet, own_server.config)
    own_server.client.config_set("maxmemory", "1mb")
    await asyncio.sleep(1.5)
    await until(lambda: sum(store.stats.fallbacks for store in fleet.stores) > 50)
    own_server.client.config_set("maxmemory", "0")
    await settles(fleet, own_server)
    assert "answers OOM" in caplog.text


async def test_counts_that_the_server_evicts_are_there_again_soon(
    fleet: Fleet, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.client.config_set("maxmemory-policy", "allkeys-random")
    await loaded(fleet, own_server.config)
    used = own_server.client.info("memory")["used_memory"]
    own_server.client.config_set("maxmemory", used + 300_000)
    names = [key("c", COUNTS), key("c", OWNERS), *(key("c", LEDGER) + store.owner for store in fleet.stores)]
    number = lost = 0
    async with asyncio.timeout(15):
        while lost < 3:
            for _ in range(20):
                own_server.client.set(f"filler-{number}", b"x" * 10_000)
                number += 1
            lost += len(names) - own_server.client.exists(*names)
            await asyncio.sleep(0.02)
    own_server.client.config_set("maxmemory", "0")
    await settles_after_loss(fleet, own_server)
    assert own_server.client.info("stats")["evicted_keys"] > 0
    assert "may evict" in caplog.text


async def settles_after_loss(fleet: Fleet, server: RedisServer) -> None:
    """As `settles`, but sums that were wrong may have been corrected."""
    await asyncio.sleep(0.5)
    await fleet.exact_within(server, 10)
    assert not fleet.raised
    assert fleet.held


async def test_with_full_memory_leases_are_renewed_and_slots_given_back(
    fleet: Fleet, own_server: RedisServer
) -> None:
    store = await fleet.add(own_server.config, beat_s=0.2, lease_s=1.0)
    names = [await fleet.acquire(store, equal(*endpoints(4))) for _ in range(10)]
    own_server.client.config_set("maxmemory", "1mb")
    fleet.release(names[0])
    await asyncio.sleep(2.3)  # `acquire` gives a new owner up to a second more
    assert own_server.client.zscore(key("c", OWNERS), store.owner) > time.time() * 1000
    assert fleet.exact(own_server)


async def test_the_password_changes(
    fleet: Fleet, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.client.config_set("requirepass", PASSWORD)
    own_server.client.execute_command("AUTH", PASSWORD)
    for _ in range(BALANCERS):
        await fleet.add(RedisConfig("127.0.0.1", own_server.port, password=PASSWORD))
    fleet.load()
    await asyncio.sleep(0.5)
    own_server.client.config_set("requirepass", "another")
    own_server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(1.5)
    await until(lambda: sum(store.stats.fallbacks for store in fleet.stores) > 50)
    own_server.client.config_set("requirepass", PASSWORD)
    await settles(fleet, own_server)
    assert "WRONGPASS" in caplog.text


@pytest.mark.parametrize("kind", [COUNTS, OWNERS])
async def test_a_key_of_the_wrong_type_is_left_alone(
    fleet: Fleet, server: RedisServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await loaded(fleet, server.config)
    server.client.delete(key("c", kind))
    server.client.set(key("c", kind), "foreign")
    await asyncio.sleep(1.5)
    assert server.client.get(key("c", kind)) == "foreign"
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == BALANCERS
    assert key("c", kind) in errors[0]
    server.client.delete(key("c", kind))
    await asyncio.sleep(0.2)
    await fleet.exact_within(server, EXACT_S)
    assert not fleet.raised


async def test_the_server_is_absent_at_the_start(fleet: Fleet, own_server: RedisServer) -> None:
    own_server.kill()
    await loaded(fleet, own_server.config)
    own_server.start()
    await until(lambda: all(store.stats.shared for store in fleet.stores))
    await settles(fleet, own_server)


async def test_failover_to_a_replica_that_lags(fleet: Fleet, own_server: RedisServer) -> None:
    with redis_server("--replicaof", "127.0.0.1", str(own_server.port)) as replica:
        await until(lambda: "master_link_status:up" in replica_info(replica), within_s=10)
        async with FaultProxy(("127.0.0.1", own_server.port)) as proxy:
            await loaded(fleet, RedisConfig("127.0.0.1", proxy.port))
            replica.freeze()
            await asyncio.sleep(1)
            own_server.kill()
            replica.thaw()
            proxy.switch(("127.0.0.1", replica.port))
            await asyncio.sleep(0.5)
            replica.client.execute_command("REPLICAOF", "NO", "ONE")
            await settles(fleet, replica, within_s=10)


def replica_info(server: RedisServer) -> str:
    return "".join(f"{name}:{value}\n" for name, value in server.client.info("replication").items())


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.BLACK_HOLE, Fault.FREEZE])
async def test_the_network_fails(fleet: Fleet, server: RedisServer, fault: Fault) -> None:
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        await loaded(fleet, RedisConfig("127.0.0.1", proxy.port))
        await proxy.set(fault)
        await asyncio.sleep(1.5)
        await proxy.set(Fault.NONE)
        await settles(fleet, server)


async def test_connections_are_cut_in_the_middle_of_answers(fleet: Fleet, server: RedisServer) -> None:
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        await loaded(fleet, RedisConfig("127.0.0.1", proxy.port))
        for _ in range(10):
            proxy.cut_after(random.randrange(1, 200))
            await asyncio.sleep(0.1)
        await settles(fleet, server)


async def test_a_slow_server_is_left_alone(
    fleet: Fleet, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        await loaded(fleet, RedisConfig("127.0.0.1", proxy.port))
        proxy.latency_s, proxy.jitter_s = 0.05, 0.45
        await asyncio.sleep(4)
        changes = [record for record in caplog.records if record.name == "lb_core.stores.link"]
        assert BALANCERS <= len(changes) <= 2 * BALANCERS, "it does not come and go"
        proxy.latency_s = proxy.jitter_s = 0
        await until(lambda: all(store.stats.shared for store in fleet.stores), within_s=6)
        await settles(fleet, server)


@pytest.mark.parametrize("by_s", [3600, -3600])
async def test_the_clock_of_one_balancer_is_an_hour_off(by_s: int, fleet: Fleet, server: RedisServer) -> None:
    """A process all of whose clocks are wrong keeps its slots while it lives, and no longer."""
    here = await fleet.add(server.config, beat_s=0.2, lease_s=1)
    await fleet.acquire(here, equal(endpoint("a")))
    arguments = (sys.executable, "-m", "tests.redis.wrong_clock", str(server.port), str(by_s))
    there = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert there.stdout is not None
        assert await asyncio.wait_for(there.stdout.readline(), 20) == b"held\n"
        for _ in range(25):
            await asyncio.sleep(0.1)
            assert counts_in(server.client, "c") == {"a": 4}
        assert dict(here.in_flight) == {"a": 4}
        assert not here.stats.reaped
    finally:
        there.kill()
        await there.wait()
    await until(lambda: counts_in(server.client, "c") == {"a": 1}, within_s=5)
    assert not here.stats.fsck_fixed


@pytest.mark.parametrize("jump_s", [3600, -3600])
async def test_the_clock_of_the_server_jumps_an_hour(fleet: Fleet, server: RedisServer, jump_s: int) -> None:
    await loaded(fleet, server.config)
    for owner, expiry in server.client.zrange(key("c", OWNERS), 0, -1, withscores=True):
        server.client.zadd(key("c", OWNERS), {owner: expiry - jump_s * 1000})
    await asyncio.sleep(0.1)
    await settles(fleet, server)
    for _, expiry in server.client.zrange(key("c", OWNERS), 0, -1, withscores=True):
        assert abs(expiry / 1000 - server.client.time()[0]) < 10
