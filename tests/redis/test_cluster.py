"""A Redis cluster whose slots move, or are gone for a while, under load: clients see nothing of it."""

import asyncio
from collections.abc import Iterator

import pytest

from lb_core.stores.ledger import COUNTS, key
from tests.redis.fleet import Fleet
from tests.redis.servers import RedisServer, owner_of, redis_cluster
from tests.waiting import until

POOL = "pool"


@pytest.fixture
def masters() -> Iterator[list[RedisServer]]:
    """Three masters of the test's own."""
    with redis_cluster() as servers:
        yield servers


class Move:
    """The slot of the pool on its way from one master to another, as an operator moves it."""

    def __init__(self, masters: list[RedisServer]) -> None:
        self.old = owner_of(key(POOL, COUNTS), masters)
        self.new = next(server for server in masters if server is not self.old)
        self._masters = masters
        self._slot = self.old.client.execute_command("CLUSTER", "KEYSLOT", key(POOL, COUNTS))

    def begin(self) -> None:
        """From here on the new master takes what the old one has not (ASK)."""
        self._set(self.new, "IMPORTING", self._id(self.old))
        self._set(self.old, "MIGRATING", self._id(self.new))

    def carry(self, *, most: int) -> int:
        """Carry so many keys over; gives how many there were."""
        names = self.old.client.execute_command("CLUSTER", "GETKEYSINSLOT", self._slot, most)
        for name in names:
            self.old.client.execute_command("MIGRATE", "127.0.0.1", self.new.port, name, 0, 1000)
        return len(names)

    def end(self) -> None:
        """The slot is the new one's (MOVED)."""
        for server in (self.new, self.old, *self._masters):
            self._set(server, "NODE", self._id(self.new))

    def _set(self, server: RedisServer, *state: str) -> None:
        server.client.execute_command("CLUSTER", "SETSLOT", self._slot, *state)

    def _id(self, server: RedisServer) -> str:
        return str(server.client.execute_command("CLUSTER", "MYID"))


async def loaded(fleet: Fleet, masters: list[RedisServer]) -> None:
    for _ in range(3):
        await fleet.add(masters[0].url("redis+cluster"), cluster=POOL)
    fleet.load()
    await until(lambda: len(fleet.held) > 20, within_s=10)


@pytest.mark.parametrize("slowly", [True, False])
async def test_a_slot_that_moves_under_load_is_followed_through_ask_and_moved(
    fleet: Fleet, masters: list[RedisServer], slowly: bool
) -> None:
    await loaded(fleet, masters)
    move = Move(masters)
    move.begin()
    if slowly:
        assert move.carry(most=2) == 2  # some here, some there
        await asyncio.sleep(0.5)
        for _ in range(20):
            move.carry(most=100)
            await asyncio.sleep(0.05)
    else:  # nobody comes in between
        while move.carry(most=100):
            pass
    move.end()
    await until(lambda: all(store.stats.shared for store in fleet.stores), within_s=5)
    await asyncio.sleep(0.5)
    await fleet.rest()
    await until(lambda: fleet.exact(move.new, POOL), within_s=5)
    assert not fleet.raised
    assert move.carry(most=1) == 0
    seen = {"errorstat_ASK", "errorstat_TRYAGAIN"} if slowly else {"errorstat_MOVED"}
    assert seen <= move.old.client.info("errorstats").keys()
    for name in tuple(fleet.held):
        fleet.release(name)
    await until(lambda: fleet.exact(move.new, POOL), within_s=2)


async def test_a_cluster_that_is_down_for_a_while_is_counted_without_and_joined_again(
    fleet: Fleet, masters: list[RedisServer]
) -> None:
    await loaded(fleet, masters)
    own = owner_of(key(POOL, COUNTS), masters)
    others = [server for server in masters if server is not own]
    for server in others:
        server.kill()
    await until(lambda: "cluster_state:fail" in cluster_info(own), within_s=10)
    before = sum(store.stats.fallbacks for store in fleet.stores)
    await until(lambda: sum(store.stats.fallbacks for store in fleet.stores) > before + 20, within_s=10)
    assert "errorstat_CLUSTERDOWN" in own.client.info("errorstats")
    for server in others:
        server.start()
    await until(lambda: "cluster_state:ok" in cluster_info(own), within_s=15)
    await until(lambda: all(store.stats.shared for store in fleet.stores), within_s=5)
    await fleet.rest()
    await until(lambda: fleet.exact(own, POOL), within_s=5)
    assert not fleet.raised


def cluster_info(server: RedisServer) -> str:
    return str(server.client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True))
