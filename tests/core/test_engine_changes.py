"""What an engine's own page says of it reaches what is remembered of its cache: page server to policy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lb_core.config import loads
from lb_core.request import LLMRequest
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome
from tests.system.test_metrics_policies import PageEngine, page
from tests.waiting import until

CONFIG = """
clusters:
  c:
    endpoints:
      - {{name: a, url: "{}"}}
      - {{name: b, url: "{}"}}
    metrics: {{scrape_interval: 0.1}}
routes:
  - {{name: by-metrics, match: {{paths: ["/metrics-route"]}}, cluster: c, lb_policy: endpoint_metrics,
      lb_config: {{}}}}
  - {{name: by-prefix, cluster: c, lb_policy: prefix_cache, lb_config: {{}}}}
"""
LOADED, RESTARTED = page("vllm-loaded"), page("vllm-idle")
"""Of the same engine; the counters of the second are lower."""


@asynccontextmanager
async def running(*engines: PageEngine) -> AsyncIterator[Runtime]:
    runtime = Runtime(loads(CONFIG.format(*(engine.url for engine in engines))))
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.close()


async def ask(runtime: Runtime) -> tuple[str, str]:
    """One turn of one conversation; gives the endpoint and the reason."""
    llm = LLMRequest("chat", "m", _body={"messages": [{"role": "user", "content": "hello"}]})
    balancer = runtime.balancer
    request = balancer.request(host="h", path="/v1/chat/completions", headers={}, session=None, llm=llm)
    placement = await balancer.route(request, started=0.0)
    balancer.finish(placement, Outcome(Ending.COMPLETE, 200))
    return placement.endpoint.name, placement.tier.reason


@pytest.mark.parametrize("after", [RESTARTED, page("vllm-loaded", awake=False)], ids=["restarted", "asleep"])
async def test_an_engine_whose_cache_is_gone_has_no_prompt_any_more(after: str) -> None:
    with PageEngine(LOADED) as first, PageEngine(LOADED) as second:
        engines = {"a": first, "b": second}
        async with running(first, second) as runtime:
            board = runtime.clusters["c"].board
            await until(lambda: len(board.observations("ab")) == 2, "both pages were read")
            home, reason = await ask(runtime)
            assert reason == "no_prefix"
            assert await ask(runtime) == (home, "prefix")
            pages_at = board.observations(home)[home].metrics.at
            engines[home].page = after
            await until(
                lambda: board.observations(home)[home].metrics.at > pages_at + 0.3, "the next pages were read"
            )
            _, reason = await ask(runtime)
            assert reason == "no_prefix"


async def test_an_engine_that_goes_on_keeps_its_prompts() -> None:
    with PageEngine(RESTARTED) as first, PageEngine(RESTARTED) as second:
        async with running(first, second) as runtime:
            board = runtime.clusters["c"].board
            await until(lambda: len(board.observations("ab")) == 2, "both pages were read")
            home, _ = await ask(runtime)
            pages_at = board.observations(home)[home].metrics.at
            for engine in (first, second):
                engine.page = LOADED
            await until(
                lambda: board.observations(home)[home].metrics.at > pages_at + 0.3, "the next pages were read"
            )
            assert await ask(runtime) == (home, "prefix")
