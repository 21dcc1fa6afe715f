"""A balancer whose clocks are wrong: `python -m tests.redis.wrong_clock <port> <seconds ahead>`.

It holds three slots at endpoint `a` and beats until it is killed.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any


def shift(by_s: int) -> None:
    """Before anything of the balancer is imported, so that nothing has the right clocks."""

    def wrong(clock: Callable[[], Any], by: int) -> Callable[[], Any]:
        return lambda: clock() + by

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, wrong(getattr(time, name), by_s))
        setattr(time, f"{name}_ns", wrong(getattr(time, f"{name}_ns"), by_s * 10**9))


async def hold(port: int) -> None:
    """Take the slots, say so, and go on."""
    from lb_core.config.model import RedisConfig
    from tests.core.build import endpoint
    from tests.redis.fleet import Fleet, equal

    async with Fleet() as fleet:
        store = await fleet.add(RedisConfig("127.0.0.1", port), beat_s=0.2, lease_s=1)
        for _ in range(3):
            await fleet.acquire(store, equal(endpoint("a")))
        assert store.stats.shared
        sys.stdout.write("held\n")
        sys.stdout.flush()
        await asyncio.sleep(60)


if __name__ == "__main__":
    shift(int(sys.argv[2]))
    asyncio.run(hold(int(sys.argv[1])))
