"""What the shared ledger is told, and when; without the beats that would put right what was not told.

The beats are a minute apart, so each of these holds by the one line that tells.
"""

import asyncio
import time
from typing import Any

import pytest
import redis

from lb_core.config.model import RedisConfig
from lb_core.stores.ballot import Ballots
from lb_core.stores.books import Books
from lb_core.stores.ledger import CHUNK, COUNTS, LEDGER, OWNERS, RemoteLedger, key
from lb_core.stores.link import Links
from lb_core.stores.patience import OneWait, at_most
from lb_core.stores.redis import RedisStore
from lb_core.stores.scripts import FSCK, HOLD, REAP, RELEASE, Script
from tests.core.build import endpoint, endpoints
from tests.fault_proxy import Fault, FaultProxy
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import RedisServer, counts_in, ledgers_in
from tests.waiting import until

ONE = equal(endpoint("e0"))
TWO = equal(*endpoints(2))


async def quiet(fleet: Fleet, config: RedisConfig) -> RedisStore:
    """A balancer whose first rounds are over."""
    store = await fleet.add(config, beat_s=60)
    await until(lambda: store.stats.resyncs >= 2 and not store._upkeep._resyncs_due)
    await asyncio.sleep(0.15)
    return store


async def test_a_slot_is_given_back_at_once(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    name = await fleet.acquire(store, ONE)
    fleet.release(name)
    await until(lambda: fleet.exact(server), within_s=0.5)


async def test_nothing_is_pending_after_the_answer(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    await fleet.acquire(store, ONE)
    assert not store._books.pending


async def test_counts_are_right_after_something_was_given_back(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    names = [await fleet.acquire(store, ONE) for _ in range(3)]
    fleet.release(names[0])
    await until(lambda: counts_in(server.client, "c") == {"e0": 2})
    await asyncio.sleep(0.05)
    await fleet.acquire(store, ONE)
    assert dict(store.in_flight) == {"e0": 3}


def test_what_is_on_its_way_back_does_not_count() -> None:
    books = Books()
    for slot in ("1", "2"):
        books.add(slot, f"r-{slot}", "c", endpoint("e0"), 0)
    books.remove("r-1")
    books.hear(["e0"], [2])  # sent before the server knew
    assert dict(books.seen) == {"e0": 1}
    books.left(["e0"])
    books.hear(["e0"], [1])
    assert dict(books.seen) == {"e0": 1}


async def test_a_release_that_the_server_refused_is_told_again(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    name = await fleet.acquire(store, ONE)
    server.client.script_flush()
    fleet.release(name)
    await until(lambda: fleet.exact(server), within_s=2)


async def test_a_late_answer_is_put_right(fleet: Fleet, server: RedisServer) -> None:
    other = await quiet(fleet, server.config)
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        store = await quiet(fleet, RedisConfig("127.0.0.1", proxy.port))
        await fleet.acquire(other, ONE)
        await proxy.set(Fault.FREEZE)
        lease = await store.acquire("late", TWO, 0.0)
        fleet.held["late"] = (store, lease)
        assert lease.endpoint.name == "e0", "it does not know of the other's request"
        await proxy.set(Fault.NONE)
        await until(lambda: fleet.exact(server), within_s=2)


async def test_a_server_that_has_forgotten_us_is_told_at_the_next_request(
    fleet: Fleet, server: RedisServer
) -> None:
    store = await quiet(fleet, server.config)
    await fleet.acquire(store, ONE)
    server.client.flushall()
    await fleet.acquire(store, ONE)
    await until(lambda: fleet.exact(server), within_s=2)


async def test_a_server_that_has_forgotten_us_is_told_at_the_next_move(
    fleet: Fleet, server: RedisServer
) -> None:
    store = await quiet(fleet, server.config)
    for _ in range(2):
        name = await fleet.acquire(store, ONE)
    server.client.flushall()
    assert await store.move(name, endpoint("e1"))
    await until(lambda: counts_in(server.client, "c") == {"e0": 1, "e1": 1})


async def test_a_move_without_an_answer_is_told_again(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    name = await fleet.acquire(store, ONE)
    with OneWait():
        with pytest.raises(TimeoutError):
            async with at_most(0.3):
                await asyncio.sleep(1)
        assert await store.move(name, endpoint("e1")), "it was not even asked"
    await until(lambda: counts_in(server.client, "c") == {"e1": 1})


async def test_a_link_that_is_back_is_told_what_we_hold(fleet: Fleet, own_server: RedisServer) -> None:
    store = await quiet(fleet, own_server.config)
    await fleet.acquire(store, ONE)
    own_server.kill()
    await until(lambda: not store.stats.shared)
    own_server.start()
    await until(lambda: fleet.exact(own_server), within_s=2)


async def test_alone_only_its_own_count(fleet: Fleet, own_server: RedisServer) -> None:
    other, store = [await quiet(fleet, own_server.config) for _ in range(2)]
    for _ in range(2):
        await fleet.acquire(other, TWO)
    await fleet.acquire(store, equal(endpoint("e0"), endpoint("e1"), max_in_flight=2))
    assert sorted(store.in_flight.values()) == [1, 2]
    own_server.kill()
    await until(lambda: not store.stats.shared)
    assert list(store.in_flight.values()) == [1]


async def test_a_resync_that_failed_is_done_again(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    await fleet.acquire(store, ONE)
    ledger = key("c", LEDGER) + store.owner
    server.client.delete(ledger)
    server.client.set(ledger, "foreign")
    store._upkeep.suspect(times=2)
    await until(lambda: store.stats.errors and store._upkeep._resyncs_due == 2)
    server.client.delete(ledger)
    await until(lambda: fleet.exact(server), within_s=2)


async def test_a_count_that_is_lower_than_what_we_hold_is_corrected(
    fleet: Fleet, server: RedisServer
) -> None:
    store = await quiet(fleet, server.config)
    await fleet.acquire(store, ONE)
    server.client.delete(key("c", COUNTS))
    store._upkeep.suspect()
    await until(lambda: fleet.exact(server), within_s=2)


async def test_a_slot_that_we_do_not_hold_is_given_back_at_the_next_beat(
    fleet: Fleet, server: RedisServer
) -> None:
    store = await fleet.add(server.config, beat_s=0.2)
    await fleet.acquire(store, ONE)
    await until(lambda: store.stats.resyncs >= 2 and not store._upkeep._resyncs_due)
    server.client.hset(key("c", LEDGER) + store.owner, "ff", "e0")
    server.client.zincrby(key("c", COUNTS), 1, "e0")
    # The tenth beat would find it too.
    await until(lambda: fleet.exact(server), within_s=0.8)


async def test_a_closed_store_hears_no_more_of_its_link(links: Links, server: RedisServer) -> None:
    store = RedisStore.at(server.config, "c", links)
    store.start()
    await asyncio.sleep(0)
    link = links.to(server.config, key("c", COUNTS))
    assert link._watchers
    await store.close()
    assert not link._watchers


# -- the scripts themselves ---------------------------------------------------------------------------


def run(server: RedisServer, script: Script, keys: list[str], *arguments: object) -> Any:
    return server.client.eval(script.source.decode(), len(keys), *keys, *arguments)


@pytest.mark.parametrize("script", ["release", "hold", "reap"])
def test_a_count_of_the_wrong_type_leaves_the_ledger_whole(server: RedisServer, script: str) -> None:
    counts, ledger, owners = key("c", COUNTS), key("c", LEDGER) + "p", key("c", OWNERS)
    server.client.set(counts, "foreign")
    server.client.hset(ledger, "1", "e0")
    server.client.zadd(owners, {"p": 1})
    before = server.client.hgetall(ledger), server.client.zrange(owners, 0, -1)
    calls: dict[str, tuple[Script, list[str], *tuple[object, ...]]] = {
        "release": (RELEASE, [counts, ledger], "1"),
        "hold": (HOLD, [counts, ledger, owners], "q", 1000, "1", "e1"),
        "reap": (REAP, [owners, counts, ledger], "p", "q", 10),
    }
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        run(server, *calls[script])
    assert (server.client.hgetall(ledger), server.client.zrange(owners, 0, -1)) == before


def test_a_dead_owner_is_reaped_whole(server: RedisServer) -> None:
    counts, ledger, owners = key("c", COUNTS), key("c", LEDGER) + "p", key("c", OWNERS)
    server.client.hset(ledger, mapping={"1": "e0", "2": "e0", "3": "e1"})
    server.client.zadd(counts, {"e0": 2, "e1": 1})
    server.client.zadd(owners, {"p": 1})
    assert run(server, REAP, [owners, counts, ledger], "p", "q", 10) == [3, 0]
    assert not ledgers_in(server.client, "c")
    assert not counts_in(server.client, "c")


async def test_all_that_a_dead_balancer_held_comes_back_at_once(fleet: Fleet, server: RedisServer) -> None:
    store = await quiet(fleet, server.config)
    many = 2 * CHUNK + 1
    server.client.hset(key("c", LEDGER) + "dead", mapping={str(slot): "e0" for slot in range(many)})
    server.client.zadd(key("c", COUNTS), {"e0": many})
    server.client.zadd(key("c", OWNERS), {"dead": 1})
    assert await store._ledger.reap("dead") == many
    assert fleet.exact(server)


def test_sums_are_not_corrected_while_owners_come_and_go(server: RedisServer) -> None:
    counts, owners = key("c", COUNTS), key("c", OWNERS)
    later = (time.time() + 60) * 1000
    server.client.zadd(counts, {"e0": 5})
    server.client.zadd(owners, {"p": later, "q": later})
    for listed in (["p"], ["p", "gone"]):
        ledgers = [key("c", LEDGER) + owner for owner in listed]
        assert run(server, FSCK, [counts, owners, *ledgers], *listed) == -1
    assert counts_in(server.client, "c") == {"e0": 5}


async def test_an_acquire_that_is_carried_out_late_changes_nothing(links: Links, server: RedisServer) -> None:
    """It was given up, and stood in the buffers of a connection that is lost when hold told the slot."""
    link = links.to(server.config, "k")
    link.start()
    await until(lambda: link.up)
    ledger = RemoteLedger("c", "one", link, lease_ms=600_000)
    here, there = endpoints(2)
    await ledger.hold([("late", here.name)])
    await ledger.acquire("late", 0.0, Ballots({}, lambda: 0.0).write(equal(there), 0.0))
    assert dict(counts_in(server.client, "c")) == {here.name: 1}
    assert await ledger.fsck() == 0
