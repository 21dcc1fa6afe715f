"""What a reload does to the Redis server that was in use: it is left, whatever other balancers do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml

from lb_core.config import loads
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome, Placement
from tests.redis.servers import RedisServer
from tests.waiting import until

DONE = Outcome(Ending.COMPLETE, status=200)


def settings(port: int | None, **more: Any) -> str:
    """One engine, whose requests are counted at the Redis server of that port."""
    engine = {"url": "http://127.0.0.1:9001", "name": "a"}
    shared = {"redis": f"redis://127.0.0.1:{port}", **more}
    return yaml.safe_dump(
        {"clusters": {"c": {"endpoints": [engine], "metrics": False}}}
        | ({"lb_policy": "global_least_request", "lb_config": shared} if port else {})
    )


@asynccontextmanager
async def running(text: str) -> AsyncIterator[Runtime]:
    runtime = await Runtime(loads(text)).start()
    try:
        yield runtime
    finally:
        await runtime.close()


async def place(runtime: Runtime) -> Placement:
    request = runtime.balancer.request(host="h", path="/", headers={}, session=None, llm=None)
    return await runtime.balancer.route(request, started=0.0)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb_core.runtime._TICK_S", 0.01)


async def test_a_cluster_that_left_does_not_wait_for_the_requests_of_other_balancers(
    server: RedisServer,
) -> None:
    async with running(settings(server.port)) as other, running(settings(server.port)) as runtime:
        theirs, ours = await place(other), await place(runtime)
        store = runtime.clusters["c"].store
        await until(lambda: store.in_flight == {"a": 2})
        runtime.apply(loads(settings(None)))
        await asyncio.sleep(0.1)
        assert runtime._retired, "it has a request of our own"
        runtime.balancer.finish(ours, DONE)
        await until(lambda: not runtime._assembly.links.all())
        assert server.client.zcard("{ai_lb:c}:i") == 1, "the other balancer is left alone there"
        other.balancer.finish(theirs, DONE)
