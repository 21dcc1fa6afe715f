"""Requests that come at once while the shared counts are asked for: none is decided as if it were alone."""

import asyncio
from collections import Counter

import pytest

from lb_core.balancer import Balancer
from lb_core.cluster import Cluster
from lb_core.engines.board import Board
from lb_core.engines.model import EngineMetrics, Scrape
from lb_core.errors import RouteError
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.policies.least_request import LeastRequest
from lb_core.stores.redis import RedisStore
from lb_core.types import Ending, Outcome, Placement
from tests.core.build import endpoint
from tests.redis.balancers import balancer_over
from tests.redis.fleet import Fleet
from tests.redis.servers import RedisServer, counts_in
from tests.waiting import until

DONE = Outcome(Ending.COMPLETE, 200)


def balancer_of(
    store: RedisStore, waiting: tuple[float, ...], policy: EndpointMetrics, *, limit: int | None = None
) -> Balancer:
    members = tuple(endpoint(f"e{n + 1}", max_in_flight=limit) for n in range(len(waiting)))
    board = Board(clock=lambda: 1.0)
    for member, queue in zip(members, waiting, strict=True):
        page = EngineMetrics(0.5, "vllm", waiting=queue, running=0, kv_usage=0.5, raw={"x": queue})
        board.take(Scrape(member.name, 0.5, 0.0, page))

    return balancer_over(store, members, policy, board=board)


type Placed = list[tuple[Balancer, Placement]]


async def burst(balancers: list[Balancer], count: int) -> tuple[Counter[str], Placed]:
    """Let `count` requests come at once, in turn to each balancer; give where they went."""

    async def one(number: int) -> tuple[Balancer, Placement]:
        balancer = balancers[number % len(balancers)]
        request = balancer.request(host="h", path="/", headers={}, session=None, llm=None)
        return balancer, await balancer.route(request, started=1.0)

    placed = await asyncio.gather(*(one(number) for number in range(count)))
    return Counter(placement.endpoint.name for _, placement in placed), placed


LEAST = EndpointMetrics(metric_policy="least", target_metric="x")


@pytest.mark.parametrize("policy", [EndpointMetrics(), LEAST], ids=["default", "least"])
@pytest.mark.parametrize("balancers", [1, 3])
async def test_h13_fifty_at_once_over_redis_are_spread_over_equals(
    policy: EndpointMetrics, balancers: int, fleet: Fleet, server: RedisServer
) -> None:
    made = [balancer_of(await fleet.add(server.config), (2, 2, 2, 2), policy) for _ in range(balancers)]
    counts, _ = await burst(made, 50)
    assert len(counts) == 4
    assert max(counts.values()) <= 1.5 * min(counts.values()), counts


async def test_h13_a_burst_over_redis_fills_the_shorter_queue_first(
    fleet: Fleet, server: RedisServer
) -> None:
    """In memory 14, 13, 12 and 11 go there."""
    balancer = balancer_of(await fleet.add(server.config), (1, 2, 4, 4), EndpointMetrics())
    counts, _ = await burst([balancer], 50)
    assert 13 <= counts["e1"] <= 16, counts
    assert max(counts.values()) <= 1.5 * min(counts.values()), counts


async def test_the_rate_limit_holds_in_a_burst_over_redis(fleet: Fleet, server: RedisServer) -> None:
    policy = EndpointMetrics(metric_policy="least", target_metric="x", rate_limit=0.6)
    balancer = balancer_of(await fleet.add(server.config), (0, 9), policy)
    counts, _ = await burst([balancer], 50)
    assert counts["e1"] <= 31, counts
    assert sum(balancer.routes[0].recent.counts.values()) == 50
    assert balancer.routes[0].recent.counts == counts


async def test_what_the_store_places_elsewhere_is_counted_there(fleet: Fleet, server: RedisServer) -> None:
    """Another balancer has filled the favourite, which this one has not heard yet."""
    first, second = [await fleet.add(server.config, beat_s=30) for _ in range(2)]
    there = balancer_of(first, (0, 20), EndpointMetrics(), limit=5)
    here = balancer_of(second, (0, 20), EndpointMetrics(), limit=5)
    await burst([there], 5)
    counts, placed = await burst([here], 3)
    cluster = here.routes[0].target
    assert isinstance(cluster, Cluster)
    assert counts == {"e2": 3}
    seen = cluster.board.observations(("e1", "e2"))
    assert {name: each.placed_since for name, each in seen.items()} == {"e1": 0, "e2": 3}
    assert here.routes[0].recent.counts == {"e2": 3}
    for balancer, placement in placed:
        balancer.finish(placement, DONE)
    assert cluster.board.observations(("e2",))["e2"].placed_since == 0


async def test_nothing_is_counted_of_a_request_that_is_refused_or_leaves(
    fleet: Fleet, server: RedisServer
) -> None:
    first, second = [await fleet.add(server.config, beat_s=30) for _ in range(2)]
    await burst([balancer_of(first, (0, 0), EndpointMetrics(), limit=2)], 4)
    here = balancer_of(second, (0, 0), EndpointMetrics(), limit=2)
    cluster = here.routes[0].target
    assert isinstance(cluster, Cluster)

    def counted() -> int:
        return sum(each.placed_since for each in cluster.board.observations(("e1", "e2")).values())

    leaving = asyncio.ensure_future(burst([here], 1))
    for _ in range(20):
        await asyncio.sleep(0)
        if counted():
            break
    assert counted() == 1, "a request is counted while the server is asked"
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert counted() == 0
    with pytest.raises(RouteError):
        await burst([here], 1)
    assert counted() == 0
    assert not here.routes[0].recent.counts


async def test_failover_through_three_balancers_keeps_an_endpoints_limit(
    fleet: Fleet, server: RedisServer
) -> None:
    """Each has placed requests at e1, which fails; e2 has room for 5 of them, and e3 for the others."""
    members = (endpoint("e1"), endpoint("e2", max_in_flight=5), endpoint("e3", weight=0.01))
    balancers = [
        balancer_over(await fleet.add(server.config, beat_s=30), members, LeastRequest()) for _ in range(3)
    ]
    failed = Outcome(Ending.UPSTREAM_FAILED, connected=False)

    async def fail_over(balancer: Balancer) -> str:
        request = balancer.request(host="h", path="/", headers={}, session=None, llm=None)
        placement = await balancer.route(request, started=1.0)
        if placement.endpoint.name != "e1":
            return "elsewhere"
        moved = await balancer.retry(placement, failed)
        return "nowhere" if moved is None else moved.endpoint.name

    await asyncio.gather(*(fail_over(balancers[number % 3]) for number in range(30)))
    assert counts_in(server.client, "c")["e2"] <= 5
    assert sum(counts_in(server.client, "c").values()) == 30


async def test_a_request_that_ends_while_it_is_moved_is_counted_nowhere(
    fleet: Fleet, server: RedisServer
) -> None:
    balancer = balancer_of(await fleet.add(server.config), (0, 9), EndpointMetrics())
    _, [(_, placement)] = await burst([balancer], 1)
    moving = asyncio.ensure_future(balancer.retry(placement, Outcome(Ending.UPSTREAM_FAILED)))
    await asyncio.sleep(0)
    balancer.finish(placement, DONE)
    assert await moving is None
    cluster = balancer.routes[0].target
    assert isinstance(cluster, Cluster)
    assert all(each.placed_since == 0 for each in cluster.board.observations(("e1", "e2")).values())
    await until(lambda: counts_in(server.client, "c") == {}, within_s=2)
