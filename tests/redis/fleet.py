"""Several balancers in one process, each with its own links, and a load on them."""

import asyncio
import random
from collections import Counter
from typing import Any, Self

from lb_core.config.model import RedisConfig
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Links
from lb_core.stores.redis import RedisStore
from lb_core.types import Choice, Decision, Endpoint, Lease, Tier
from tests.core.build import endpoints
from tests.redis.servers import RedisServer, counts_in, ledgers_in
from tests.waiting import until


def equal(*members: Endpoint, max_in_flight: int | None = None) -> Decision:
    """All are equals."""
    return Decision("test", (Tier(tuple(Choice(member) for member in members), "equal"),), max_in_flight)


class Fleet:
    """Balancers that share counts. Every request that they hold is in `held`, so this is the truth."""

    def __init__(self) -> None:
        self.stores: list[RedisStore] = []
        self.held: dict[str, tuple[RedisStore, Lease]] = {}
        self.raised: list[BaseException] = []
        self._links: list[Links] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for store in self.stores:
            await store.close()
        for links in self._links:
            await links.close()

    async def add(self, config: RedisConfig, *, cluster: str = "c", **options: Any) -> RedisStore:
        """One more balancer, connected if the server is there."""
        links = Links()
        self._links.append(links)
        link = links.to(config, key(cluster, COUNTS))
        store = RedisStore(cluster, link, **options)
        self.stores.append(store)
        store.start()
        await link.settled()
        return store

    async def crash(self, store: RedisStore) -> None:
        """As `kill -9`: the process tells nobody."""
        place = self.stores.index(store)
        self.stores.pop(place)
        assert store._task is not None
        store._task.cancel()
        store._ended.clear()
        await self._links.pop(place).close()
        self.held = {name: pair for name, pair in self.held.items() if pair[0] is not store}

    async def acquire(self, store: RedisStore, decision: Decision) -> str:
        """One request; gives its id."""
        self._number += 1
        name = f"r-{self._number}"
        lease = await store.acquire(name, decision, random.random())
        self.held[name] = (store, lease)
        return name

    def release(self, name: str) -> None:
        """It ends."""
        store, _ = self.held.pop(name)
        assert store.release(name)

    def load(self, *, per_s: float = 100, length_s: float = 0.5, sizes: int = 4) -> None:
        """Begin requests at this rate, spread over the balancers, until the test ends or `rest`."""
        decision = equal(*endpoints(sizes))

        async def one(store: RedisStore) -> None:
            try:
                name = await self.acquire(store, decision)
            except Exception as error:  # noqa: BLE001  any is what the tests are about
                self.raised.append(error)
                return
            await asyncio.sleep(random.uniform(0, 2 * length_s))
            if name in self.held:
                self.release(name)

        async def arrivals() -> None:
            while True:
                self._spawn(one(random.choice(self.stores)))
                await asyncio.sleep(random.expovariate(per_s))

        self._spawn(arrivals())

    async def rest(self) -> None:
        """No new requests; those that run stay as they are."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, coro: object) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.create_task(coro)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def truth(self) -> dict[str, int]:
        """Requests in flight by endpoint, as those who sent them know."""
        return dict(Counter(lease.endpoint.name for _, lease in self.held.values()))

    def exact(self, server: RedisServer, cluster: str = "c") -> bool:
        """The shared counts and all ledgers say exactly the truth."""
        client = server.client
        summed = Counter(name for ledger in ledgers_in(client, cluster).values() for name in ledger.values())
        return dict(counts_in(client, cluster)) == self.truth() == dict(summed)

    async def exact_within(self, server: RedisServer, seconds: float) -> float:
        """Wait until the counts are exact while the load runs; gives how long it took.

        A request between the balancer and the server is not an error, so the load is looked at through a
        pause in which nothing new begins and nothing ends.
        """
        await self.rest()
        return await until(lambda: self.exact(server), within_s=seconds)
