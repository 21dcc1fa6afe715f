"""One request's calls to the server share the time that one of them may take."""

import asyncio
import time

import pytest

from lb_core.balancer import Balancer
from lb_core.config.model import RedisConfig
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.prefix.redis import RedisPrefixIndex
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Links
from lb_core.stores.patience import OneWait, at_most
from lb_core.stores.redis import RedisStore
from lb_core.stores.wire import ServerAway
from lb_core.tasks import spawn
from lb_core.types import Ending, Outcome
from tests.core.build import endpoints
from tests.core.test_prefix_finder import asking, user
from tests.fault_proxy import FaultProxy
from tests.redis.balancers import balancer_over
from tests.redis.servers import RedisServer

PROMISED_S = 0.25
SLACK_S = 0.2
"""Less than a second wait would take."""


async def balancer_on(links: Links, config: RedisConfig) -> Balancer:
    """With `prefix_cache`, whose counts and prefixes are at one server."""
    link = links.to(config, key("c", COUNTS))
    link.start()
    await link.settled()
    return balancer_over(
        RedisStore("c", link, beat_s=30), endpoints(3), PrefixCache(), index=RedisPrefixIndex(link, "c")
    )


async def placed_within(balancer: Balancer) -> float:
    llm = asking([user("hello")]).llm
    request = balancer.request(host="h", path="/", headers={}, session=None, llm=llm)
    begun = time.monotonic()
    placement = await balancer.route(request, started=begun)
    took = time.monotonic() - begun
    balancer.finish(placement, Outcome(Ending.COMPLETE, 200))
    return took


@pytest.mark.parametrize("known", [True, False], ids=["secret known", "first request"])
async def test_a_request_waits_once_for_a_frozen_server(
    known: bool, links: Links, own_server: RedisServer
) -> None:
    balancer = await balancer_on(links, own_server.config)
    if known:
        await placed_within(balancer)
        await asyncio.sleep(0.5)  # its upkeep rests
    own_server.freeze()
    assert 0.8 * PROMISED_S < await placed_within(balancer) < PROMISED_S + SLACK_S
    assert await placed_within(balancer) < PROMISED_S + SLACK_S
    assert await placed_within(balancer) < SLACK_S, "after the second failure not at all"
    own_server.thaw()
    for route in balancer.routes:
        await route.target.close()  # type: ignore[union-attr]


async def test_slow_answers_take_no_longer_together(links: Links, server: RedisServer) -> None:
    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        balancer = await balancer_on(links, RedisConfig("127.0.0.1", proxy.port))
        await placed_within(balancer)
        await asyncio.sleep(0.5)
        proxy.latency_s = 0.24
        assert await placed_within(balancer) < PROMISED_S + SLACK_S
        proxy.latency_s = 0
        for route in balancer.routes:
            await route.target.close()  # type: ignore[union-attr]


async def test_what_a_request_begins_in_the_background_has_its_own_time() -> None:
    ended = asyncio.Event()

    async def background() -> None:
        await asyncio.sleep(0)
        async with at_most(0.01):
            ended.set()

    with OneWait():
        with pytest.raises(TimeoutError):
            async with at_most(0.01):
                await asyncio.sleep(1)
        with pytest.raises(ServerAway):
            async with at_most(0.01):
                raise AssertionError("no time is left")
        spawn(background(), name="test")
    await asyncio.wait_for(ended.wait(), 1)
    async with at_most(0.01):
        await asyncio.sleep(0)
