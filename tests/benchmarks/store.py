"""What a decision costs through one Redis server: `python -m tests.benchmarks.store`.

Compared with the original scheme, rebuilt as HGETALL, choice in the client, HINCRBY +1 and -1 through
redis-py's pool, which is what a straightforward port does.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from lb_core.stores.link import Links
from lb_core.stores.redis import RedisStore
from lb_core.types import Choice, Decision, Tier
from tests.core.build import endpoints
from tests.redis.servers import RedisServer, redis_server

SIZES = (8, 100, 1000)
CLIENTS = (1, 50)
PER_ENDPOINT = 4
MOST_HELD = 400

type Exchange = Callable[[int], Awaitable[float]]
"""Acquires and releases once; gives the seconds that acquire took."""


@contextmanager
def server_time(server: RedisServer) -> Iterator[dict[str, float]]:
    """Microseconds that the server spends in commands, while the block runs."""
    server.client.config_resetstat()
    spent: dict[str, float] = {}
    yield spent
    stats: dict[str, Any] = server.client.info("commandstats")
    # What a script calls is listed beside the script, and is contained in it.
    scripted = "cmdstat_evalsha" in stats
    for name, numbers in stats.items():
        if name == "cmdstat_evalsha" or (not scripted and name in {"cmdstat_hgetall", "cmdstat_hincrby"}):
            spent["total"] = spent.get("total", 0) + numbers["usec"]


async def measure(
    label: str, server: RedisServer, size: int, clients: int, count: int, once: Exchange
) -> None:
    """Run `count` exchanges from so many clients at once, and print a line."""
    for number in range(50):
        await once(-1 - number)
    took: list[float] = []

    async def client(first: int) -> None:
        for number in range(first, count, clients):
            took.append(await once(number))  # noqa: PERF401  one after the other is the point

    with server_time(server) as spent:
        cpu, start = time.process_time(), time.perf_counter()
        await asyncio.gather(*(client(first) for first in range(clients)))
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    took.sort()
    print(
        f"{label:>9} {size:>5} endpoints {clients:>3} clients: {count / elapsed:>7.0f} decisions/s, acquire"
        f" {took[count // 2] * 1e6:>6.0f} µs median {took[count * 99 // 100] * 1e6:>6.0f} µs p99, server"
        f" {spent['total'] / count:>6.1f} µs, client CPU {cpu / count * 1e6:>6.1f} µs for acquire + release"
    )


async def ledger(
    server: RedisServer, size: int, clients: int, count: int, *, label: str = "ledger", details: bool = False
) -> None:
    """This store, with some requests in flight; `details` gives every endpoint weight, load and limit."""
    links = Links()
    store = RedisStore.at(server.config, "bench", links)
    members = endpoints(size)
    if details:
        members = tuple(replace(member, weight=2.0, max_in_flight=1000) for member in members)
    choices = tuple(Choice(member, virtual_load=0.5 if details else 0.0) for member in members)
    decision = Decision("bench", (Tier(choices, "equal"),))
    for number in range(min(size * PER_ENDPOINT, MOST_HELD)):
        await store.acquire(f"held-{number}", decision, random.random())

    async def once(number: int) -> float:
        start = time.perf_counter()
        await store.acquire(f"r-{number}", decision, random.random())
        took = time.perf_counter() - start
        store.release(f"r-{number}")
        return took

    await measure(label, server, size, clients, count, once)
    assert store.stats.fallbacks == 0, store.stats
    await store.close()
    await links.close()


async def detailed(server: RedisServer, size: int, clients: int, count: int) -> None:
    """The dearest form of the ledger."""
    await ledger(server, size, clients, count, label="detailed", details=True)


async def original(server: RedisServer, size: int, clients: int, count: int) -> None:
    """The original scheme."""
    client = redis.asyncio.Redis(
        port=server.port, max_connections=64, retry=Retry(NoBackoff(), 0), decode_responses=True
    )
    names = [endpoint.name for endpoint in endpoints(size)]
    await client.hset("counts", mapping=dict.fromkeys(names, PER_ENDPOINT))

    async def once(_: int) -> float:
        start = time.perf_counter()
        counts = await client.hgetall("counts")
        least = min(int(counts[name]) for name in names)
        chosen = random.choice([name for name in names if int(counts[name]) == least])
        await client.hincrby("counts", chosen, 1)
        took = time.perf_counter() - start
        await client.hincrby("counts", chosen, -1)
        return took

    await measure("original", server, size, clients, count, once)
    await client.aclose()


def main() -> None:
    """Print a line for each scheme, number of endpoints and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="exchanges in each measurement")
    count = parser.parse_args().count
    with redis_server() as server:
        for size in SIZES:
            for clients in CLIENTS:
                for scheme in (ledger, detailed, original):
                    server.client.flushall()
                    asyncio.run(
                        scheme(
                            server,
                            size,
                            clients,
                            count // 5 if size == 1000 and scheme is original else count,
                        )
                    )


if __name__ == "__main__":
    main()
