"""A route that chooses among clusters, through the proxy."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from lb_core.types import Choice, Decision, Tier
from tests.addon import engine as engines
from tests.addon.engine import ScriptedEngine
from tests.addon.proxy import Proxy
from tests.addon.test_ai_lb import Keeper, send
from tests.waiting import until


def config(first: ScriptedEngine, second: ScriptedEngine, **lb_config: Any) -> dict[str, Any]:
    return {
        "clusters": {
            "one": {"endpoints": [{**first.endpoint, "name": "a"}]},
            "two": {"endpoints": [{**second.endpoint, "name": "b"}]},
        },
        "lb_type": "cluster",
        "lb_policy": "cluster_metrics",
        "lb_config": {"mode": "LeastBusy", "service_list": ["one", "two"], **lb_config},
        "expose_decision": True,
    }


async def test_the_chosen_name_goes_upstream_and_the_clients_own_is_dropped(tmp_path: Path) -> None:
    keeper = Keeper()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(ScriptedEngine(engines.answer))
        second = await stack.enter_async_context(ScriptedEngine(engines.answer))
        proxy = await stack.enter_async_context(Proxy(tmp_path, config(first, second), keeper))
        for _ in range(8):
            head, _ = await send(
                proxy, b"{}", "X-Envoy-Target-Cluster: mine", "x-envoy-target-cluster: mine too"
            )
            assert b" 200 " in head
        for engine, name in ((first, b"one"), (second, b"two")):
            assert engine.heads, "both were tried"
            for head in engine.heads:
                assert head.lower().count(b"x-envoy-target-cluster: ") == 1
                assert b"x-envoy-target-cluster: %s\r\n" % name in head.lower()
        await until(lambda: len(keeper.flows) == 8, "the flows ended")
        record = keeper.flows[-1].metadata["ai_lb"]
        assert {row["cluster"] for row in record["services"]} == {"one", "two"}
        assert record["services"][0]["policy"] == "cluster_metrics"
        assert proxy.is_clean()


async def test_a_full_cluster_gives_way_to_the_next(tmp_path: Path) -> None:
    """It is asked first each time: nothing is known of it yet, so a request is to find out."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(ScriptedEngine(engines.answer))
        second = await stack.enter_async_context(ScriptedEngine(engines.answer))
        settings = config(first, second, mode="LeastTotalLatency")
        settings["clusters"]["one"]["endpoints"][0]["max_in_flight"] = 1
        proxy = await stack.enter_async_context(Proxy(tmp_path, settings))
        assert proxy.addon._runtime is not None
        cluster = proxy.addon._runtime.clusters["one"]
        full = Decision("test", (Tier(tuple(map(Choice, cluster.endpoints)), "test"),))
        lease = await cluster.store.acquire("held", full, 0.5)
        for _ in range(5):
            head, _ = await send(proxy, b"{}")
            assert b"x-ai-lb-endpoint: b" in head
        assert not first.heads
        cluster.store.release(lease.id)
        head, _ = await send(proxy, b"{}")
        assert b"x-ai-lb-endpoint: a" in head, "it is used once it has room"


async def test_an_empty_cluster_gives_way_to_the_next(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(ScriptedEngine(engines.answer))
        second = await stack.enter_async_context(ScriptedEngine(engines.answer))
        settings = config(first, second)
        settings["clusters"]["one"]["endpoints"] = []
        proxy = await stack.enter_async_context(Proxy(tmp_path, settings))
        for _ in range(5):
            head, _ = await send(proxy, b"{}")
            assert b"x-ai-lb-endpoint: b" in head


async def test_an_undeclared_envoy_name_is_that_host_and_port(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        name = f"outbound|{engine.port}||127.0.0.1"
        settings = {
            "lb_type": "cluster",
            "lb_policy": "cluster_metrics",
            "lb_config": {"mode": "LeastTotalLatency", "service_list": [name], "cluster_header": "x-chosen"},
        }
        async with Proxy(tmp_path, settings) as proxy:
            head, _ = await send(proxy, b"{}")
            assert b" 200 " in head
            (asked,) = [asked for asked in engine.heads if asked.startswith(b"POST")]
            assert f"x-chosen: {name}".encode() in asked


@pytest.mark.parametrize("option", ["off", "round_robin", "cluster_metrics"])
async def test_a_default_that_chooses_clusters_is_not_swapped(tmp_path: Path, option: str) -> None:
    from mitmproxy.exceptions import OptionsError

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(ScriptedEngine(engines.answer))
        second = await stack.enter_async_context(ScriptedEngine(engines.answer))
        proxy = await stack.enter_async_context(Proxy(tmp_path, config(first, second)))
        with pytest.raises(OptionsError, match="chooses clusters"):
            proxy.master.options.update(ai_lb_policy=option)
