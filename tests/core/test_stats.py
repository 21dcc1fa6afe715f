"""The balancer's own metrics: what is shown of endpoints, and for how long."""

from dataclasses import replace

import pytest
import yaml
from prometheus_client import generate_latest

from lb_core.config import loads
from lb_core.engines.board import Board, _Engine
from lb_core.runtime import Runtime
from lb_core.stats import Stats
from lb_core.types import Ending, Outcome, Placement
from tests.core.build import Clock
from tests.waiting import until

DONE = Outcome(Ending.COMPLETE, status=200, ttft_s=0.1, duration_s=0.2)


def page(stats: Stats) -> str:
    return generate_latest(stats.registry).decode()


async def place(runtime: Runtime) -> Placement:
    request = runtime.balancer.request(host="h", path="/", headers={}, session=None, llm=None)
    return await runtime.balancer.route(request, started=0.0)


async def test_endpoints_that_left_are_shown_for_a_while_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with DNS, whose members have a new name for each address."""
    monkeypatch.setattr("lb_core.runtime._TICK_S", 0.01)
    clock = Clock()
    endpoint = {"url": "http://127.0.0.1:1", "name": "pod-0"}
    text = yaml.safe_dump({"clusters": {"c": {"endpoints": [endpoint], "metrics": False}}})
    runtime = await Runtime(loads(text), clock=clock).start()
    cluster = runtime.clusters["c"]
    runtime.balancer.finish(await place(runtime), DONE)
    streaming = await place(runtime)
    for number in range(1, 20):
        cluster.members((replace(cluster.endpoints[0], name=f"pod-{number}", port=number),))
        runtime.stats.health_changed("c", f"pod-{number}", "ejected")
        runtime.balancer.finish(await place(runtime), DONE)
    assert 'pod-1"' in page(runtime.stats)

    def later_gone(*names: str) -> bool:
        clock.now += 100
        text = page(runtime.stats)
        return not any(f'{name}"' in text for name in names)

    await until(lambda: later_gone("pod-1", "pod-18"))
    assert 'pod-19"' in page(runtime.stats)
    assert 'pod-0"' in page(runtime.stats), "it has a request"
    runtime.balancer.finish(streaming, DONE)
    assert 'endpoint="pod-0",route="default"} 2.0' in page(runtime.stats)
    await until(lambda: later_gone("pod-0"))
    assert page(runtime.stats).count("pod-") == page(runtime.stats).count('pod-19"')
    await runtime.close()


def test_signals_are_shown_while_engines_come_and_go() -> None:
    """The page is made in another thread: an engine may come between any two steps of it."""
    board = Board(clock=lambda: 0.0)

    class Busy(_Engine):
        @property
        def missing(self) -> tuple[str, ...]:
            board._engine(f"new-{len(board._engines)}")
            return ("page",)

        @missing.setter
        def missing(self, value: tuple[str, ...]) -> None: ...

    board._engines = {"a": Busy(), "b": Busy()}
    assert board.missing() == {"a": ("page",), "b": ("page",)}
