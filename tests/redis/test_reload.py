"""What a reload does to the Redis server that was in use: it is left, whatever other balancers do."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml

from lb_core import tasks
from lb_core.config import loads
from lb_core.health import Kind, State, Verdict
from lb_core.runtime import Runtime
from lb_core.stores.link import Link
from lb_core.stores.redis import RedisStore
from lb_core.stores.wire import ServerAway
from lb_core.types import Ending, Outcome, Placement, Request
from tests.core.build import endpoints
from tests.redis.fleet import Fleet, equal
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


async def test_what_is_known_of_the_endpoints_stays_when_their_counts_move_to_a_server(
    server: RedisServer,
) -> None:
    def listed(redis: str, *names: str) -> str:
        engines = [{"url": f"http://127.0.0.1:{port}", "name": name} for port, name in enumerate(names, 9001)]
        policy = yaml.safe_load(settings(server.port)) if redis else {}
        return yaml.safe_dump({**policy, "clusters": {"c": {"endpoints": engines, "metrics": False}}})

    async with running(listed("", "a", "b", "c")) as runtime:
        health = runtime.clusters["c"].health
        health.drain("b")
        for _ in range(3):
            attempt = await health.admit("a", health.eligible({}))
            assert attempt is not None
            attempt.ended(Verdict(Kind.REFUSED))
        assert dict(health.states()) == {"a": State.EJECTED, "b": State.DRAINING, "c": State.HEALTHY}
        waits = await place(runtime)
        runtime.apply(loads(listed("redis", "a", "b", "d")))
        assert isinstance(runtime.clusters["c"].store, RedisStore)
        known = runtime.clusters["c"].health.states()
        assert known == {"a": State.EJECTED, "b": State.DRAINING, "d": State.HEALTHY}
        assert (await place(runtime)).endpoint.name == "d"
        runtime.balancer.finish(waits, DONE)
        for _ in range(5):
            attempt = await health.admit("d", health.eligible({}))
            assert attempt is not None
            attempt.ended(Verdict(Kind.REFUSED))
        await until(lambda: server.client.hexists("{ai_lb:c}:news", "d"), "others hear of it")


async def test_a_request_that_is_placed_when_its_cluster_was_closed_is_served_and_begins_nothing_anew(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = asyncio.Event()

    class Slow:
        """Where a prompt is looked up, which takes a while."""

        async def find(self, request: Request) -> None:
            await found.wait()

    async with running(settings(server.port)) as runtime:
        cluster = runtime.clusters["c"]
        monkeypatch.setattr(cluster, "finder", lambda policy: Slow())
        placing = asyncio.create_task(place(runtime))
        await asyncio.sleep(0)
        runtime.apply(loads(settings(None)))
        await until(lambda: not runtime._assembly.links.all())
        found.set()
        placement = await placing
        assert placement.lease.in_flight == 1
        assert await cluster.store.move(placement.lease.id, placement.endpoint)
        runtime.balancer.finish(placement, DONE)
        assert dict(cluster.store.in_flight) == {}
    assert not [task.get_name() for task in tasks._running if "ledger" in task.get_name()]


async def test_a_closed_store_leaves_nothing_at_the_server_and_tells_it_nothing(
    fleet: Fleet, server: RedisServer
) -> None:
    store = await fleet.add(server.config)
    await store.acquire("0", equal(*endpoints(2)), 0.0)
    await until(lambda: len(server.client.keys("*")) == 3)
    await store.close()
    assert server.client.keys("*") == [], "what it held is given back"
    lease = await store.acquire("1", equal(*endpoints(2)), 0.0)
    assert await store.move("1", endpoints(2)[1])
    assert dict(store.in_flight) == {"e1": 1}
    assert store.release(lease.id)
    store.start()
    await asyncio.sleep(0.05)
    assert server.client.keys("*") == []


async def test_another_time_out_holds_from_the_reload_on_over_the_same_connection(
    own_server: RedisServer,
) -> None:
    async with running(settings(own_server.port, timeout=10_000)) as runtime:
        (link,) = runtime._assembly.links.all()
        assert await shortest_wait(link, own_server, times=1) > 0.2
        runtime.apply(loads(settings(own_server.port, timeout=20)))
        assert runtime._assembly.links.all() == (link,)
        assert await shortest_wait(link, own_server, times=5) < 0.2


async def shortest_wait(link: Link, server: RedisServer, *, times: int) -> float:
    """How long a call waits for a server that does not answer, on a machine that may be slow."""
    waits = []
    for _ in range(times):
        await until(lambda: link.up)
        server.freeze()
        began = time.monotonic()
        with pytest.raises(ServerAway):
            await link.call("PING")
        waits.append(time.monotonic() - began)
        server.thaw()
    return min(waits)
