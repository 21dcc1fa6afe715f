"""Exactly one probe in the fleet while an endpoint is half-open."""

import asyncio

from lb_core.health import Health, HealthConfig, Kind, Verdict
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Links
from lb_core.stores.probes import RedisProbes
from tests.core.build import endpoints
from tests.redis.servers import RedisServer, until


async def gates(links: Links, server: RedisServer, count: int) -> list[RedisProbes]:
    link = links.to(server.config, key("c", COUNTS))
    link.start()
    await link.settled()
    return [RedisProbes(link, "c", f"balancer-{number}") for number in range(count)]


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
        Health(HealthConfig(), members, clock=lambda: now, dice=lambda: 0.5, gate=gate)
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
