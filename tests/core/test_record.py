"""The record has what a decision was made on, as plain values, and does not grow without bound."""

from typing import Any

import orjson

from lb_core import record
from lb_core.engines.board import Board
from lb_core.engines.model import EngineMetrics, Scrape
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.request import LLMRequest
from lb_core.stores.memory import MemoryStore
from lb_core.types import Ending, Outcome
from tests.core.build import endpoints
from tests.redis.balancers import balancer_over

DONE = Outcome(Ending.COMPLETE, 200)
CHAT = LLMRequest("chat", "ad", _body={"messages": [{"role": "user", "content": "hello"}]})


def board_of(**pages: EngineMetrics) -> Board:
    board = Board(clock=lambda: 1.0)
    for name, page in pages.items():
        board.take(Scrape(name, 0.5, 0.0, page))
    return board


async def recorded(policy: EndpointMetrics | PrefixCache, board: Board, times: int = 1) -> dict[str, Any]:
    balancer = balancer_over(MemoryStore("c"), endpoints(3), policy, board=board)
    for _ in range(times):
        asked = balancer.request(host="h", path="/", headers={}, session=None, llm=CHAT)
        placed = await balancer.route(asked, started=1.0)
        balancer.finish(placed, DONE)
    made = record.opened(placed, host="h")
    assert orjson.loads(orjson.dumps(made)) == made, "plain values only"
    return made


def row(made: dict[str, Any], endpoint: str) -> dict[str, Any]:
    (found,) = [each for each in made["candidates"] if each["endpoint"] == endpoint]
    return dict(found)


async def test_what_engines_said_of_adapters_and_of_the_target_is_recorded() -> None:
    many = frozenset(f"adapter-{n:05}" for n in range(5000))
    board = board_of(
        e0=EngineMetrics(0.5, "vllm", waiting=1, max_loras=4, running_adapters=frozenset("yx"), lora=True),
        e1=EngineMetrics(0.5, "vllm", waiting=1, max_loras=9, running_adapters=many, lora=True),
        e2=EngineMetrics(0.5, "sglang", waiting=1, raw={"x": 2.5}),
    )
    made = await recorded(EndpointMetrics(), board)
    assert (row(made, "e0")["metrics"]["max_loras"], row(made, "e0")["metrics"]["adapters"]) == (
        4,
        ["x", "y"],
    )
    assert row(made, "e1")["metrics"]["adapters"] == [f"adapter-{n:05}" for n in range(16)]
    said = row(made, "e2")["metrics"]
    assert (said["max_loras"], said["adapters"], said["targets"]) == (None, None, {"x": 2.5})


async def test_a_candidate_that_the_policy_offers_nothing_is_recorded_too() -> None:
    board = board_of(
        e0=EngineMetrics(0.5, "vllm", waiting=1, max_loras=4, running_adapters=frozenset(), lora=True),
        e1=EngineMetrics(0.5, "vllm", waiting=0),
    )
    made = await recorded(EndpointMetrics(), board)
    assert row(made, "e1")["reason"] == "not_offered"
    assert row(made, "e1")["metrics"]["waiting"] == 0


async def test_the_match_of_the_prompt_is_recorded() -> None:
    assert (await recorded(PrefixCache(), board_of()))["prefix"] is None
    made = await recorded(PrefixCache(), board_of(), times=2)
    assert made["prefix"] == {"owner": made["endpoint"], "matched": 1, "cuts": 1}
