"""What one balancer finds out about an engine, the others need not find out."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

from tests.redis.servers import redis_server
from tests.system.balancer import Balancer, Engines
from tests.system.clients import QUICK, Clients, and_nothing_is_left, ask, ejections, request, settings
from tests.waiting import eventually


async def test_an_engine_that_one_balancer_ejected_gets_nothing_from_the_other_either(tmp_path: Path) -> None:
    with redis_server() as redis, Engines(4, *QUICK) as engines, ExitStack() as stack:
        config = settings(engines.endpoints(), {"ejection_s": 6, "probe_successes": 1}) | {
            "lb_config": {"serviceFQDN": "127.0.0.1", "servicePort": redis.port}
        }
        one, other = [stack.enter_context(Balancer(tmp_path, config)) for _ in range(2)]
        engines.fault("sim-1", "error_500", delay_s=0.005)
        async with Clients(one):
            await eventually(lambda: ejections(one) == 1, within_s=10, what="one ejects it")
        await eventually(lambda: ejections(other) == 1, within_s=3, what="the other one hears of it")
        at = engines.truth()["sim-1"]["total"]
        seen = [await ask(other.port, request(stream=False)) for _ in range(15)]
        assert {each.outcome for each in seen} == {"ok"}
        assert engines.truth()["sim-1"]["total"] == at
        assert "found by another balancer" in other.log()
        engines.fault("sim-1", "none")

        def back(balancer: Balancer) -> bool:
            return balancer.metric("ai_lb_health_changes_total", state="healthy", endpoint="sim-1") == 1

        async with asyncio.timeout(15):
            while not back(one):  # only this one has requests that can probe
                assert (await ask(one.port, request(stream=False))).outcome == "ok"
                await asyncio.sleep(0.05)
        await eventually(lambda: back(other), within_s=3, what="the other one hears of the return")
        for balancer in (one, other):
            and_nothing_is_left(balancer)
