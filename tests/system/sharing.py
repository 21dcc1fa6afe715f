"""Balancers that share one Redis: how they are set up, and what is counted beside what is open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.redis.servers import RedisServer, counts_in
from tests.system.balancer import Balancer, Engines

PASSWORD = "canary-password-of-redis"


def config(engines: Engines, redis_port: int, policy: str = "global_least_request") -> dict[str, Any]:
    """A cluster `engines` whose counts are shared."""
    return {
        "clusters": {"engines": {"endpoints": engines.endpoints()}},
        "lb_policy": policy,
        "lb_config": {
            "serviceFQDN": "127.0.0.1",
            "servicePort": redis_port,
            "username": "default",
            "password": PASSWORD,
        },
        "expose_decision": True,
    }


@asynccontextmanager
async def sharing(
    folder: Path, engines: Engines, redis_port: int, count: int, *arguments: str
) -> AsyncIterator[list[Balancer]]:
    """So many balancers, started and stopped at once; the event loop goes on meanwhile."""
    balancers = [Balancer(folder, config(engines, redis_port), *arguments) for _ in range(count)]
    try:
        await asyncio.gather(*(asyncio.to_thread(balancer.start) for balancer in balancers))
        yield balancers
    finally:
        started = [balancer for balancer in balancers if balancer.process is not None]
        await asyncio.gather(*(asyncio.to_thread(balancer.stop) for balancer in started))


def opened(engines: Engines) -> dict[str, int]:
    """Requests open at each engine, zeros left out: the truth."""
    return {name: engine["open"] for name, engine in engines.truth().items() if engine["open"]}


def counted(redis: RedisServer) -> dict[str, int]:
    """The shared counts."""
    return {name: count for name, count in counts_in(redis.client, "engines").items() if count}
