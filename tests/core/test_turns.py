"""Round robin through the balancer: every endpoint has its turn, whatever else the cluster is used for."""

from lb_core.config import loads
from lb_core.request import LLMRequest
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome

CLUSTER = """
clusters:
  c: {metrics: false, endpoints: [{url: "http://127.0.0.1:1", name: a}, {url: "http://127.0.0.1:2", name: b}]}
"""
WRONG = Outcome(Ending.COMPLETE, 404)


async def taken(runtime: Runtime, path: str = "/", model: str | None = None) -> str:
    """The endpoint of one more request, which ends well there."""
    balancer = runtime.balancer
    llm = LLMRequest("chat", model) if model else None
    asked = balancer.request(host="h", path=path, headers={}, session=None, llm=llm)
    placement = await balancer.route(asked, started=0.0)
    balancer.finish(placement, Outcome(Ending.COMPLETE, 200))
    return placement.endpoint.name


async def test_a_retry_takes_nobodys_turn() -> None:
    runtime = Runtime(loads(CLUSTER))
    balancer = runtime.balancer
    first = ""
    for _ in range(8):
        asked = balancer.request(host="h", path="/", headers={}, session=None, llm=None)
        placement = await balancer.route(asked, started=0.0)
        first += placement.endpoint.name
        if placement.endpoint.name == "a":
            placement = await balancer.retry(placement, WRONG) or placement
        balancer.finish(placement, Outcome(Ending.COMPLETE, 200))
    assert first == "abababab"


async def test_each_route_to_a_cluster_has_its_own_turns() -> None:
    routes = """
routes:
  - {name: x, cluster: c, match: {paths: [/x]}}
  - {name: y, cluster: c, match: {paths: [/y]}, lb_policy: random}
"""
    runtime = Runtime(loads(CLUSTER + routes))
    first = ""
    for _ in range(8):
        first += await taken(runtime, "/x")
        await taken(runtime, "/y")
    assert first == "abababab"


async def test_the_endpoints_of_each_model_have_their_own_turns() -> None:
    runtime = Runtime(
        loads("""
clusters:
  c:
    metrics: false
    endpoints:
      - {url: "http://127.0.0.1:1", name: a, models: [small]}
      - {url: "http://127.0.0.1:2", name: b, models: [small]}
      - {url: "http://127.0.0.1:3", name: c, models: [large]}
      - {url: "http://127.0.0.1:4", name: d, models: [large]}
""")
    )
    assert "".join([await taken(runtime, model=model) for model in ["small", "large"] * 4]) == "acbdacbd"


async def test_turns_go_on_after_a_reload() -> None:
    runtime = Runtime(loads(CLUSTER))
    assert await taken(runtime) == "a"
    runtime.apply(loads(CLUSTER + "expose_decision: true\n"))
    assert await taken(runtime) == "b"
    await runtime.close()
