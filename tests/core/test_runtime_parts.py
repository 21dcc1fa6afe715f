"""What a runtime begins it ends, at a reload, when a cluster is of no use any more, and at the close."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import pytest
import yaml
from prometheus_client import start_http_server

from lb_core import config, tasks
from lb_core.engines.model import EngineMetrics, Scrape
from lb_core.health import News, State
from lb_core.prefix.finder import Found
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome, Placement
from tests.core.build import Clock
from tests.waiting import free_port, until


def loaded(clusters: dict[str, Any], **more: Any) -> config.Config:
    """The first of the clusters serves all."""
    routes = [{"name": "all", "cluster": next(iter(clusters))}]
    return config.loads(yaml.safe_dump({"clusters": clusters, "routes": routes, **more}))


def engines(*names: str, **more: Any) -> dict[str, Any]:
    """A cluster of these."""
    listed = [{"name": name, "url": f"http://127.0.0.1:{number}"} for number, name in enumerate(names, 1)]
    return {"endpoints": listed, **more}


@asynccontextmanager
async def running(settings: config.Config) -> AsyncIterator[Runtime]:
    before = set(tasks._running)
    runtime = Runtime(settings)
    await runtime.start()
    yield runtime
    await runtime.close()
    await until(lambda: tasks._running <= before)


async def place(runtime: Runtime) -> Placement:
    request = runtime.balancer.request(host="h", path="/", headers={}, session=None, llm=None)
    return await runtime.balancer.route(request, started=0.0)


def names_of_tasks() -> list[str]:
    return [task.get_name() for task in tasks._running]


# -- a reload ---------------------------------------------------------------------------------------


async def test_a_reload_leaves_one_task_of_checks_for_each_cluster() -> None:
    settings = loaded({"c": engines("a", health={"checks": {"interval_s": 60}})})
    async with running(settings) as runtime:
        for _ in range(3):
            runtime.apply(settings)
            await asyncio.sleep(0)
        await until(lambda: names_of_tasks().count("checks") == 1)


async def test_a_file_of_endpoints_is_not_followed_after_it_left_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "engines.yaml"
    path.write_text("[]")
    async with running(loaded({"c": engines("a", endpoints_file=str(path))})) as runtime:
        assert [name for name in names_of_tasks() if str(path) in name]
        runtime.apply(loaded({"c": engines("a")}))
        await until(lambda: not [name for name in names_of_tasks() if str(path) in name])


async def test_a_cluster_that_left_is_closed_when_its_last_request_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lb_core.runtime._TICK_S", 0.01)
    async with running(loaded({"old": engines("a"), "new": engines("b")})) as runtime:
        placement = await place(runtime)
        cluster, closed = runtime.clusters["old"], asyncio.Event()
        monkeypatch.setattr(cluster, "close", spied(closed))
        runtime.apply(loaded({"new": engines("b")}))
        await asyncio.sleep(0.05)
        assert not closed.is_set()
        assert dict(cluster.store.in_flight) == {"a": 1}
        runtime.balancer.finish(placement, Outcome(Ending.COMPLETE, 200))
        async with asyncio.timeout(2):
            await closed.wait()
        assert not runtime._retired


def spied(called: asyncio.Event) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        called.set()

    return close


# -- the end ----------------------------------------------------------------------------------------


async def test_the_end_gives_back_what_all_clusters_hold_also_those_that_left() -> None:
    async with running(loaded({"old": engines("a"), "new": engines("b")})) as runtime:
        stores = [runtime.clusters[name].store for name in ("old", "new")]
        await place(runtime)
        runtime.apply(loaded({"new": engines("b")}))
        await place(runtime)
        assert [dict(store.in_flight) for store in stores] == [{"a": 1}, {"b": 1}]
    assert [dict(store.in_flight) for store in stores] == [{}, {}]


async def test_nothing_runs_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[tuple[WSGIServer, threading.Thread]] = []

    def keep(*args: Any, **options: Any) -> tuple[WSGIServer, threading.Thread]:
        servers.append(started := start_http_server(*args, **options))
        return started

    monkeypatch.setattr("lb_core.runtime.start_http_server", keep)
    path = tmp_path / "engines.yaml"
    path.write_text("[]")
    cluster = engines("a", health={"checks": {"interval_s": 60}}, endpoints_file=str(path))
    # Nobody answers at the address of this Redis: each balancer counts alone.
    shared = {"lb_policy": "global_least_request", "lb_config": {"redis": "redis://127.0.0.1:1/0"}}
    port = free_port()
    async with running(loaded({"c": cluster}, metrics_listen=f"127.0.0.1:{port}", **shared)):
        names = names_of_tasks()
        for word in ("housekeeping", "checks", "news of", "watch of", "ledger of", "connection"):
            assert [name for name in names if word in name], names
        ((server, thread),) = servers
        assert thread.is_alive()
    assert not thread.is_alive()
    assert server.fileno() < 0, "its address is free"


async def test_the_scraper_ends_with_its_runtime() -> None:
    async with running(loaded({"c": engines("a")}, lb_policy="endpoint_metrics")):
        assert any(thread.name == "scraper" for thread in threading.enumerate())
    assert not any(thread.name == "scraper" for thread in threading.enumerate())


# -- what pages tell --------------------------------------------------------------------------------


def test_what_pages_tell_reaches_the_health() -> None:
    clock = Clock()
    runtime = Runtime(loaded({"c": engines("a", "b")}), clock=clock)
    cluster = runtime.clusters["c"]

    def page(**values: Any) -> State:
        metrics = EngineMetrics(at=clock.now, dialect="vllm", **values)
        cluster.board.take(Scrape("a", clock.now, 0.1, metrics))
        return cluster.health.states()["a"]

    assert page(sleeping=True) is State.SLEEPING
    assert page(sleeping=False) is State.HEALTHY
    clock.now += 100
    for _ in range(3):
        assert page(running=1, progress=5, generated_tokens=5) is State.HEALTHY
        clock.now += 59
    clock.now += 60
    assert page(running=1, progress=5, generated_tokens=5) is State.STALLED
    assert page(running=1, progress=6, generated_tokens=6) is State.HEALTHY
    clock.now += 100
    assert not cluster.health.eligible({"b": 10}).virtual_loads
    page(running=1, progress=1, generated_tokens=1)
    assert cluster.health.eligible({"b": 10}).virtual_loads, "it starts slowly"


async def test_an_engine_that_was_restarted_or_left_has_no_prompt_any_more() -> None:
    settings = loaded({"c": engines("a", "b")}, lb_policy="prefix_cache")
    runtime = Runtime(settings)
    cluster = runtime.clusters["c"]
    assert runtime.balancer.default_policy is not None
    finder = cluster.finder(runtime.balancer.default_policy)
    assert finder is not None
    for how in ("restarted", "left"):
        finder.record(Found((b"k",)), "a")
        assert await finder.index.match([b"k"])
        if how == "left":
            cluster.members(cluster.endpoints[1:])
        else:
            for at, tokens in ((1.0, 9.0), (2.0, 1.0)):
                metrics = EngineMetrics(at=at, dialect="vllm", generated_tokens=tokens)
                cluster.board.take(Scrape("a", at, 0.1, metrics))
        assert not await finder.index.match([b"k"])


async def test_a_cluster_that_is_closed_finishes_what_it_notes_of_prompts() -> None:
    runtime = Runtime(loaded({"c": engines("a")}, lb_policy="prefix_cache"))
    cluster, closed = runtime.clusters["c"], asyncio.Event()
    assert runtime.balancer.default_policy is not None
    finder = cluster.finder(runtime.balancer.default_policy)
    assert finder is not None
    finder.index.close = spied(closed)  # type: ignore[method-assign, assignment]
    await cluster.close()
    assert closed.is_set()


def test_a_step_of_an_engine_reaches_the_health() -> None:
    runtime = Runtime(loaded({"c": engines("a", "b")}), clock=Clock())
    cluster = runtime.clusters["c"]
    cluster.health.heard([News("a", True, 0.5, 9.0, "silent")])
    assert cluster.health.states()["a"] is State.EJECTED
    for at in (1.0, 2.0):
        metrics = EngineMetrics(at=at, dialect="vllm", progress=at)
        cluster.board.take(Scrape("a", at, 0.1, metrics))
    assert cluster.health.states()["a"] is State.HEALTHY


async def test_the_health_sees_the_time_though_there_are_no_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lb_core.runtime._TICK_S", 0.01)
    async with running(loaded({"c": engines("a", "b", metrics=False)})) as runtime:
        health = runtime.clusters["c"].health
        health.heard([News("a", True, 0.5, 0.05, "failures")])
        assert health.states()["a"] is State.EJECTED
        await until(lambda: health.states()["a"] is State.HALF_OPEN)


async def test_a_policy_that_is_gone_finishes_what_was_noted_of_prompts() -> None:
    closed = asyncio.Event()
    async with running(loaded({"c": engines("a")}, lb_policy="prefix_cache")) as runtime:
        assert runtime.balancer.default_policy is not None
        finder = runtime.clusters["c"].finder(runtime.balancer.default_policy)
        assert finder is not None
        finder.index.close = spied(closed)  # type: ignore[method-assign, assignment]
        runtime.apply(loaded({"c": engines("a")}))
        async with asyncio.timeout(2):
            await closed.wait()


async def test_all_but_the_metrics_runs_where_their_address_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lb_core.runtime._METRICS_TRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        runtime = Runtime(loaded({"c": engines("a")}, metrics_listen=listen))
        with pytest.raises(OSError, match="in use"):
            await runtime.start()
        assert "housekeeping" in names_of_tasks()
        assert any(thread.name == "scraper" for thread in threading.enumerate())
        await runtime.close()
