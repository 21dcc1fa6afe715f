"""Every store keeps the promises of `stores/base.py`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from lb_core.config.model import RedisConfig
from lb_core.errors import Saturated
from lb_core.stores.base import Store
from lb_core.stores.link import Links
from lb_core.stores.memory import MemoryStore
from lb_core.stores.redis import RedisStore
from lb_core.types import Choice, Decision, Endpoint, Tier
from tests.core.build import endpoint, endpoints
from tests.redis.servers import redis_cluster, redis_server

A, B = endpoint("a"), endpoint("b")


def prefer(*tiers: tuple[Endpoint, ...], limit: int | None = None) -> Decision:
    return Decision("p", tuple(Tier(tuple(map(Choice, tier)), "r") for tier in tiers), limit)


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, RedisConfig]]:
    with ExitStack() as stack:
        yield {
            "redis": stack.enter_context(redis_server()).config,
            "redis cluster": stack.enter_context(redis_cluster())[0].url("redis+cluster"),
        }


@pytest.fixture(params=["memory", "redis", "redis cluster"])
async def store(request: pytest.FixtureRequest, shared: dict[str, RedisConfig]) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore("c")
        return
    links = Links()
    made = RedisStore.at(shared[request.param], f"c-{request.node.name}", links)
    yield made
    assert made.stats.fallbacks == 0, "the server was not asked"
    await made.close()
    await links.close()


async def test_a_lease_says_what_was_taken(store: Store) -> None:
    lease = await store.acquire("1", prefer((A,), (B,)), 0.5)
    assert (lease.id, lease.endpoint, lease.tier, lease.in_flight) == ("1", A, 0, 1)
    assert dict(store.in_flight) == {"a": 1}


async def test_the_least_loaded_endpoint_of_the_first_tier_with_room_is_taken(store: Store) -> None:
    decision = prefer((A,), endpoints(3), limit=2)
    taken = [(await store.acquire(str(n), decision, 0.0)).endpoint.name for n in range(5)]
    assert taken == ["a", "a", "e0", "e1", "e2"]


async def test_the_same_id_gives_the_same_lease(store: Store) -> None:
    first = await store.acquire("1", prefer((A, B)), 0.0)
    assert await store.acquire("1", prefer((A, B)), 0.9) == first
    assert sum(store.in_flight.values()) == 1


async def test_the_same_id_twice_at_once_holds_one_slot(store: Store) -> None:
    one, other = await asyncio.gather(*(store.acquire("1", prefer((A, B)), tie) for tie in (0.0, 0.9)))
    assert one.endpoint == other.endpoint
    assert store.release("1")
    assert not store.release("1")
    for name, member in (("2", A), ("3", B)):
        assert (await store.acquire(name, prefer((member,), limit=1), 0.0)).in_flight == 1


async def test_held_is_what_this_process_has(store: Store) -> None:
    await store.acquire("1", prefer((A,)), 0.0)
    asking = asyncio.ensure_future(store.acquire("2", prefer((B,)), 0.0))
    await asyncio.sleep(0)
    assert store.held == 2
    await asking
    for name in ("1", "2"):
        store.release(name)
    assert store.held == 0


async def test_a_slot_is_given_back_once(store: Store) -> None:
    await store.acquire("1", prefer((A,)), 0.0)
    assert [store.release("1"), store.release("1"), store.release("never")] == [True, False, False]
    assert dict(store.in_flight) == {}


async def test_full_endpoints_are_refused_and_nothing_is_held(store: Store) -> None:
    narrow = endpoint("n", max_in_flight=1)
    await store.acquire("1", prefer((narrow,)), 0.0)
    with pytest.raises(Saturated):
        await store.acquire("2", prefer((narrow,)), 0.0)
    with pytest.raises(Saturated):
        await store.acquire("3", prefer((narrow,), limit=5), 0.0)
    assert not store.release("2")
    assert dict(store.in_flight) == {"n": 1}
    store.release("1")
    assert (await store.acquire("4", prefer((narrow,)), 0.0)).in_flight == 1


async def test_a_decision_without_choices_is_refused(store: Store) -> None:
    with pytest.raises(Saturated):
        await store.acquire("1", prefer(), 0.0)


async def test_a_slot_moves_in_one_step(store: Store) -> None:
    await store.acquire("1", prefer((A,)), 0.0)
    assert await store.move("1", B)
    assert not await store.move("2", B)
    assert dict(store.in_flight) == {"b": 1}
    assert (await store.acquire("1", prefer((A,)), 0.0)).endpoint == B
    store.release("1")
    assert dict(store.in_flight) == {}
    assert (await store.acquire("3", prefer((B,)), 0.0)).in_flight == 1


async def test_a_slot_does_not_move_to_a_full_endpoint(store: Store) -> None:
    narrow = endpoint("n", max_in_flight=2)
    for number in ("1", "2"):
        await store.acquire(number, prefer((narrow,)), 0.0)
    await store.acquire("3", prefer((A,)), 0.0)
    for limit in (None, 1, 5):
        with pytest.raises(Saturated):
            await store.move("3", narrow, limit)
    with pytest.raises(Saturated):
        await store.move("1", A, 1)
    assert dict(store.in_flight) == {"n": 2, "a": 1}
    assert await store.move("1", narrow, 2), "it is there already"
    assert (await store.acquire("3", prefer((B,)), 0.0)).endpoint == A
    store.release("2")
    assert await store.move("3", narrow)
    assert dict(store.in_flight) == {"n": 2}
    for number in ("1", "3"):
        store.release(number)
    assert dict(store.in_flight) == {}


async def test_weights_and_virtual_loads_count(store: Store) -> None:
    heavy, light = endpoint("heavy", weight=3), endpoint("light")
    decision = Decision("p", (Tier((Choice(heavy), Choice(light, virtual_load=0.5)), "r"),))
    for number in range(7):
        await store.acquire(str(number), decision, 0.0)
    assert dict(store.in_flight) == {"heavy": 5, "light": 2}


async def test_a_burst_spreads_evenly(store: Store) -> None:
    decision = prefer(endpoints(4))
    await asyncio.gather(*(store.acquire(str(n), decision, n / 50) for n in range(50)))
    assert sorted(store.in_flight.values()) == [12, 12, 13, 13]


async def test_a_caller_that_is_cancelled_holds_nothing(store: Store) -> None:
    for number in range(50):
        task = asyncio.ensure_future(store.acquire(str(number), prefer((A,)), 0.0))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            assert store.release(str(number))
    assert (await store.acquire("last", prefer((A,)), 0.0)).in_flight == 1
    assert dict(store.in_flight) == {"a": 1}


async def test_a_thousand_endpoints_are_all_found_when_the_others_are_full(store: Store) -> None:
    decision = prefer(endpoints(100), limit=1)
    for number in range(100):
        await store.acquire(str(number), decision, number / 100)
    assert set(store.in_flight.values()) == {1}
    with pytest.raises(Saturated):
        await store.acquire("more", decision, 0.0)


async def test_closing_gives_everything_back(store: Store) -> None:
    for number in range(5):
        await store.acquire(str(number), prefer((A, B)), 0.0)
    await store.close()
    assert dict(store.in_flight) == {}
    assert not store.release("0")
    assert (await store.acquire("again", prefer((A,)), 0.0)).in_flight == 1
