"""Balancers that share a cluster: one probe of an endpoint in the fleet at a time, one view of its health."""

import asyncio
import time
from collections.abc import Callable, Sequence

from lb_core.health import Health, HealthConfig, Kind, News, State, Verdict
from lb_core.stores.fleet import RedisFleet
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Links
from tests.core.build import endpoints
from tests.redis.servers import RedisServer
from tests.waiting import until


async def gates(links: Links, server: RedisServer, count: int) -> list[RedisFleet]:
    link = links.to(server.config, key("c", COUNTS))
    link.start()
    await until(lambda: link.up)
    return [RedisFleet(link, "c", f"balancer-{number}") for number in range(count)]


async def test_one_claim_in_the_fleet_and_only_its_owner_gives_it_back(
    links: Links, server: RedisServer
) -> None:
    one, other = await gates(links, server, 2)
    assert await one.claim("e0", 60)
    assert not await other.claim("e0", 60)
    assert await other.claim("e1", 60)
    other.release("e0")
    await asyncio.sleep(0.05)
    assert not await other.claim("e0", 60)
    one.release("e0")
    await until(lambda: not server.client.exists(key("c", "probe:e0")))
    assert await other.claim("e0", 60)


async def test_a_claim_runs_out_when_its_owner_dies(links: Links, server: RedisServer) -> None:
    one, other = await gates(links, server, 2)
    assert await one.claim("e0", 0.05)
    await asyncio.sleep(0.1)
    assert await other.claim("e0", 60)


async def test_only_its_owner_renews_a_claim_and_none_that_ran_out(links: Links, server: RedisServer) -> None:
    one, other = await gates(links, server, 2)
    place = key("c", "probe:e0")
    assert await one.claim("e0", 60)
    other.renew("e0", 600)
    one.renew("e0", 200)
    await until(lambda: 60 < server.client.ttl(place) <= 200)
    assert not await other.claim("e0", 60)
    server.client.delete(place)
    one.renew("e0", 200)
    other.renew("e1", 200)
    await asyncio.sleep(0.05)
    assert not server.client.exists(place, key("c", "probe:e1"))


async def test_a_client_that_leaves_during_the_claim_leaves_nothing(
    links: Links, server: RedisServer
) -> None:
    one, other = await gates(links, server, 2)
    claiming = asyncio.create_task(one.claim("e0", 60))
    await asyncio.sleep(0)  # the claim is written and not answered
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)
    await asyncio.sleep(0.05)
    assert await other.claim("e0", 60)


async def test_without_the_server_everybody_probes(links: Links, own_server: RedisServer) -> None:
    one, other = await gates(links, own_server, 2)
    own_server.kill()
    assert await one.claim("e0", 60)
    assert await other.claim("e0", 60)
    one.release("e0")


async def test_of_five_balancers_with_a_half_open_endpoint_one_probes(
    links: Links, server: RedisServer
) -> None:
    now = 0.0
    members = endpoints(4)
    fleet = [
        Health(HealthConfig(), members, clock=lambda: now, dice=lambda: 0.5, fleet=gate)
        for gate in await gates(links, server, 5)
    ]
    for health in fleet:
        for _ in range(3):
            attempt = await health.admit("e0", health.eligible({}))
            assert attempt is not None
            attempt.ended(Verdict(Kind.FAILURE))
        assert "e0" not in health.eligible({}).available
    now = 30.0
    attempts = await asyncio.gather(*(health.admit("e0", health.eligible({})) for health in fleet))
    assert sum(attempt is not None for attempt in attempts) == 1


async def pair(
    links: Links, server: RedisServer, clock: Callable[[], float]
) -> tuple[list[Health], list[asyncio.Task[None]]]:
    """Two balancers that listen to each other; the second clock is an hour off."""
    fleets = await gates(links, server, 2)
    healths = [
        Health(
            HealthConfig(probe_successes=1),
            endpoints(4),
            clock=lambda offset=offset: clock() + offset,  # type: ignore[misc]
            dice=lambda: 0.5,
            fleet=fleet,
        )
        for fleet, offset in zip(fleets, (0.0, 3600.0), strict=True)
    ]
    return healths, [asyncio.create_task(health.listen()) for health in healths]


async def fail(health: Health, name: str, times: int = 3) -> None:
    for _ in range(times):
        attempt = await health.admit(name, health.eligible({}))
        assert attempt is not None
        attempt.ended(Verdict(Kind.FAILURE))


async def test_an_ejection_and_the_return_are_heard_by_the_other_balancers(
    links: Links, server: RedisServer
) -> None:
    (one, other), tasks = await pair(links, server, time.monotonic)
    await fail(one, "e0")
    await until(lambda: other.states()["e0"] is State.EJECTED, within_s=3)
    assert other.states()["e1"] is State.HEALTHY
    one.heard([News("e0", True, 0.0, 0.0, "failures")])  # its ejection is over
    probe = await one.admit("e0", one.eligible({}))
    assert probe is not None
    probe.content()
    await until(lambda: other.states()["e0"] is State.HEALTHY, within_s=3)
    for task in tasks:
        task.cancel()


async def test_who_comes_later_hears_what_is_out_and_for_how_long(links: Links, server: RedisServer) -> None:
    one, late = await gates(links, server, 2)
    one.ejected("e0", 30.0, "unreachable")
    one.ejected("e1", 30.0, "failures")
    one.recovered("e1")
    await until(lambda: server.client.hlen(key("c", "news")) == 2)
    heard: list[News] = []
    listening = asyncio.create_task(late.listen(heard.extend))
    await until(lambda: len(heard) == 2, within_s=3)
    news = {item.endpoint: item for item in heard}
    assert news["e0"].out
    assert news["e0"].reason == "unreachable"
    assert 25 < news["e0"].left_s <= 30
    assert 0 <= news["e0"].age_s < 5
    assert not news["e1"].out
    listening.cancel()


async def test_old_news_are_dropped_when_there_are_new_ones(links: Links, server: RedisServer) -> None:
    (one,) = await gates(links, server, 1)
    now_ms = int(time.time() * 1000)
    for name, ended in (("gone", now_ms - 700_000), ("late", now_ms - 300_000), ("out", now_ms + 60_000)):
        server.client.hset(key("c", "news"), name, f"{ended - 1000} {ended} other out failures")
    server.client.hset(key("c", "news"), "odd", "what nobody wrote")
    one.ejected("e0", 30, "failures")
    await until(lambda: server.client.hexists(key("c", "news"), "e0"))
    assert set(server.client.hkeys(key("c", "news"))) == {"late", "out", "e0"}


async def test_news_go_away_when_nobody_tells_any(links: Links, server: RedisServer) -> None:
    (fleet,) = await gates(links, server, 1)
    fleet.ejected("e0", 30.0, "failures")
    await until(lambda: server.client.hlen(key("c", "news")) == 1)
    assert 0 < server.client.ttl(key("c", "news")) <= 3600


async def test_each_item_is_heard_once_and_ones_own_never(links: Links, server: RedisServer) -> None:
    one, other = await gates(links, server, 2)
    calls: list[Sequence[News]] = []
    listening = [asyncio.create_task(fleet.listen(calls.append)) for fleet in (one, other)]
    one.ejected("e0", 30.0, "failures")
    await asyncio.sleep(2.3)
    assert sum(len(call) for call in calls) == 1
    for task in listening:
        task.cancel()


async def test_what_no_balancer_wrote_and_what_is_long_over_is_passed_over(
    links: Links, server: RedisServer
) -> None:
    (fleet,) = await gates(links, server, 1)
    now_ms = int(server.client.time()[0]) * 1000
    for number, text in enumerate(
        [
            "",
            "junk",
            f"{now_ms} x other out failures",
            f"{now_ms} {now_ms - 700_000} other out failures",
            "\xff" * 9,
        ]
    ):
        server.client.hset(key("c", "news"), f"e{number}", text)
    server.client.hset(key("c", "news"), "good", f"{now_ms} {now_ms + 5000} other out failures")
    heard: list[News] = []
    listening = asyncio.create_task(fleet.listen(heard.extend))
    await until(lambda: bool(heard), within_s=3)
    assert [item.endpoint for item in heard] == ["good"]
    listening.cancel()


async def test_while_the_server_is_away_everybody_judges_alone(links: Links, own_server: RedisServer) -> None:
    (one, other), tasks = await pair(links, own_server, time.monotonic)
    own_server.kill()
    await fail(one, "e0")
    assert one.states()["e0"] is State.EJECTED
    await asyncio.sleep(1.2)
    assert other.states()["e0"] is State.HEALTHY
    own_server.start()
    await until(lambda: one.fleet._link.up, within_s=5)  # type: ignore[attr-defined]
    await fail(one, "e1", 3)
    await until(lambda: other.states()["e1"] is State.EJECTED, within_s=5)
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
