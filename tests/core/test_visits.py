"""Whose pages are visited, and what follows under policies that do not look at them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yaml

from lb_core.config import loads
from lb_core.errors import ConfigError, NoEndpoint
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.request import LLMRequest
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome, Placement
from tests.core.site import PAGE, Answer, Site, response, says
from tests.waiting import until

ASLEEP = PAGE + b'vllm:engine_sleep_state{sleep_state="awake"} 0\n'
AWAKE = PAGE + b'vllm:engine_sleep_state{sleep_state="awake"} 1\n'
MISSING = response(b"no", "404 Not Found")
POLICIES: dict[str, dict[str, object]] = {
    "none": {},
    "global_least_request": {"lb_policy": "global_least_request"},
    "prefix_cache": {"lb_policy": "prefix_cache"},
    "endpoint_metrics": {"lb_policy": "endpoint_metrics"},
    "cluster_metrics": {
        "lb_policy": "cluster_metrics",
        "lb_config": {"mode": "LeastBusy", "service_list": ["engines"]},
    },
}


def config(*sites: Site, metrics: object = None, **policy: object) -> str:
    """A cluster of all sites, visited often."""
    endpoints = [{"url": f"http://127.0.0.1:{site.port}", "name": f"e{n}"} for n, site in enumerate(sites)]
    often = {"scrape_interval": 0.1, "stale_after": 5} if metrics is None else metrics
    return yaml.safe_dump({"clusters": {"engines": {"endpoints": endpoints, "metrics": often}}, **policy})


@asynccontextmanager
async def running(text: str) -> AsyncIterator[Runtime]:
    runtime = await Runtime(loads(text, "ai_lb.yaml", {})).start()
    try:
        yield runtime
    finally:
        await runtime.close()


async def placed(runtime: Runtime) -> Placement:
    """Place a request and take it back."""
    request = runtime.balancer.request(host="a.test", path="/v1/models", headers={}, session=None, llm=None)
    placement = await runtime.balancer.route(request, started=0.0)
    runtime.balancer.finish(placement, Outcome(Ending.COMPLETE, 200, duration_s=0.1))
    return placement


def states(runtime: Runtime) -> dict[str, str]:
    return dict(runtime.clusters["engines"].health.states())


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_sleeping_engine_gets_nothing_whatever_the_policy(policy: str) -> None:
    async with (
        Site(says(response(ASLEEP))) as asleep,
        Site(says(response(AWAKE))) as awake,
        running(config(asleep, awake, **POLICIES[policy])) as runtime,
    ):
        await until(lambda: states(runtime) == {"e0": "sleeping", "e1": "healthy"})
        assert {(await placed(runtime)).endpoint.name for _ in range(6)} == {"e1"}
        awake.answer = says(response(ASLEEP))
        await until(lambda: states(runtime)["e1"] == "sleeping")
        with pytest.raises(NoEndpoint):
            await placed(runtime)


async def test_an_engine_started_anew_has_no_prompt_any_more() -> None:
    llm = LLMRequest("chat", model="m", _body={"messages": [{"role": "user", "content": "hello"}]})

    def worked(tokens: int) -> Answer:
        return says(response(AWAKE + b"vllm:generation_tokens_total %d\n" % tokens))

    async with Site(worked(5)) as site, running(config(site, **POLICIES["prefix_cache"])) as runtime:
        finder = runtime.clusters["engines"].finder(PrefixCache())
        assert finder is not None
        asked = runtime.balancer.request(host="a.test", path="/", headers={}, session=None, llm=llm)
        placement = await runtime.balancer.route(asked, started=0.0)
        runtime.balancer.finish(placement, Outcome(Ending.COMPLETE, 200, duration_s=0.1))
        await until(lambda: len(site.asked) > 2)
        assert [match.owner for match in (await finder.find(asked)).matches] == ["e0"]
        site.answer = worked(1)
        pages = len(site.asked)
        await until(lambda: len(site.asked) > pages + 2)
        assert (await finder.find(asked)).matches == ()


async def test_metrics_false_visits_no_page_of_that_cluster_and_may_change_in_a_reload() -> None:
    async with Site(says(response(AWAKE))) as site, running(config(site, metrics=False)) as runtime:
        await asyncio.sleep(0.3)
        assert site.asked == []
        runtime.apply(loads(config(site)))
        await until(lambda: site.asked)
        runtime.apply(loads(config(site, metrics=False)))
        await asyncio.sleep(0.2)
        asked = len(site.asked)
        await asyncio.sleep(0.3)
        assert len(site.asked) == asked


async def test_a_verdict_ends_when_the_engine_is_not_asked_any_more_or_its_page_is_gone() -> None:
    often = {"scrape_interval": 0.1, "stale_after": 0.5}
    async with Site(says(response(ASLEEP))) as site, running(config(site, metrics=often)) as runtime:
        await until(lambda: states(runtime) == {"e0": "sleeping"})
        runtime.apply(loads(config(site, metrics=False)))
        assert states(runtime) == {"e0": "healthy"}
        runtime.apply(loads(config(site, metrics=often)))
        await until(lambda: states(runtime) == {"e0": "sleeping"})
        site.answer = says(MISSING)
        await until(lambda: states(runtime) == {"e0": "healthy"})


async def test_a_page_that_no_policy_needs_may_be_missing_until_one_needs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with Site(says(MISSING)) as site, running(config(site)) as runtime:
        board = runtime.clusters["engines"].board
        await until(lambda: "no metrics" in caplog.text)
        assert {record.levelname for record in caplog.records} == {"INFO"}
        assert board.missing() == {}
        assert (await placed(runtime)).endpoint.name == "e0"
        runtime.use_policy("endpoint_metrics")
        assert [r.levelname for r in caplog.records if "no metrics" in r.message] == ["INFO", "WARNING"]
        assert board.missing() == {"e0": ("page",)}
        runtime.use_policy("off")
        assert board.missing() == {}
        runtime.use_policy("endpoint_metrics")
        await asyncio.sleep(0.3)
        assert [r.levelname for r in caplog.records if "no metrics" in r.message][:2] == ["INFO", "WARNING"]


async def test_a_page_that_no_policy_needs_and_nobody_has_is_asked_for_less_and_less() -> None:
    async with AsyncExitStack() as stack:
        missing = await stack.enter_async_context(Site(says(MISSING)))
        page = await stack.enter_async_context(Site(says(response(AWAKE))))
        async with running(config(missing, page)) as runtime:
            await until(lambda: len(page.asked) > 30, within_s=30)
            asked = len(missing.asked)
            assert asked < 0.75 * len(page.asked)
            await until(lambda: len(missing.asked) > asked)
            runtime.use_policy("endpoint_metrics")
            asked, of = len(missing.asked), len(page.asked)
            await until(lambda: len(page.asked) >= of + 10, within_s=30)
            assert len(missing.asked) - asked > 7, "who needs it asks as often as is configured"


async def test_clusters_whose_files_share_names_are_each_visited_and_drained(tmp_path: Path) -> None:
    clusters: dict[str, object] = {}
    async with AsyncExitStack() as stack:
        for name, body in (("chat", ASLEEP), ("batch", AWAKE)):
            site = await stack.enter_async_context(Site(says(response(body))))
            file = tmp_path / f"{name}.yaml"
            file.write_text(yaml.safe_dump([{"url": f"http://127.0.0.1:{site.port}", "name": "gpu-1"}]))
            often = {"scrape_interval": 0.1, "stale_after": 5}
            clusters[name] = {"endpoints_file": str(file), "metrics": often}
        routes = [{"cluster": "chat", "match": {"paths": ["/chat"]}}, {"cluster": "batch"}]
        text = yaml.safe_dump({"clusters": clusters, "routes": routes, "lb_policy": "endpoint_metrics"})
        runtime = await stack.enter_async_context(running(text))
        boards = [cluster.board for cluster in runtime.clusters.values()]
        await until(lambda: all(board.observations(["gpu-1"]) for board in boards))

        def states() -> list[str]:
            return [str(runtime.clusters[name].health.states()["gpu-1"]) for name in clusters]

        assert states() == ["sleeping", "healthy"]
        runtime.drain("gpu-1", drained=True)
        assert states() == ["draining", "draining"]
        runtime.drain("gpu-1", drained=False)
        assert states() == ["sleeping", "healthy"]


@pytest.mark.parametrize(
    ("policy", "at"),
    [
        ("lb_policy: endpoint_metrics", "2: lb_policy"),
        (
            "lb_policy: endpoint_metrics\nroutes:\n  - cluster: a",
            "4: routes[0].cluster",
        ),
        (
            "routes:\n  - cluster: a\n    lb_policy: endpoint_metrics",
            "4: routes[0].lb_policy",
        ),
    ],
)
def test_a_policy_that_needs_pages_is_refused_on_a_cluster_without(policy: str, at: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(f"clusters: {{a: {{endpoints: [], metrics: false}}}}\n{policy}\n", "f")
    assert caught.value.lines() == [
        f"f:{at}: endpoint_metrics needs what the engines report, and cluster 'a' has metrics: false;"
        " leave that out or choose another policy"
    ]


def test_a_policy_that_needs_pages_cannot_be_chosen_for_a_cluster_without() -> None:
    runtime = Runtime(loads("clusters: {a: {endpoints: [], metrics: false}}\n"))
    with pytest.raises(ConfigError, match=r"cluster 'a' has metrics: false"):
        runtime.use_policy("endpoint_metrics")
    runtime.use_policy("global_least_request")


def test_metrics_true_is_as_if_it_were_left_out() -> None:
    on = loads("clusters: {a: {endpoints: [], metrics: true}}\n")
    assert on.clusters["a"].metrics == loads("clusters: {a: {endpoints: []}}\n").clusters["a"].metrics
