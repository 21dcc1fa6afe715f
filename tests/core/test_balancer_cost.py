"""What a decision costs where there are many endpoints."""

import time

from lb_core.config import loads
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome

ENDPOINTS = 1000


async def test_a_decision_among_a_thousand_endpoints_takes_less_than_a_millisecond() -> None:
    listed = "".join(f"      - http://10.0.{n // 250}.{n % 250 + 1}:8000\n" for n in range(ENDPOINTS))
    text = f"lb_policy: global_least_request\nlb_config: {{}}\nclusters:\n  c:\n    endpoints:\n{listed}"
    balancer = Runtime(loads(text)).balancer

    async def mean_s(count: int) -> float:
        began = time.thread_time()
        for _ in range(count):
            asked = balancer.request(host="h", path="/v1/x", headers={}, session=None, llm=None)
            placed = await balancer.route(asked, started=balancer.clock())
            balancer.finish(placed, Outcome(Ending.COMPLETE, 200))
        return (time.thread_time() - began) / count

    assert min([await mean_s(50) for _ in range(10)]) < 1e-3
