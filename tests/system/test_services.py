"""`cluster_metrics` through a real mitmdump: two clusters that swap their speeds, and two balancers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.redis.servers import redis_server
from tests.system.balancer import Balancer, Engines
from tests.system.test_metrics_policies import Answer, ask, body
from tests.waiting import wait_until

NAMES = ("east", "west")
QUEUE_SIZE = 20

Swap = Callable[[str], Awaitable[None]]
"""Makes the service with this name the slow one and the other the fast one."""


def config(programs: dict[str, Engines], mode: str, **more: Any) -> dict[str, Any]:
    """Each service has one engine, which is named after it."""
    return {
        "clusters": {
            name: {"endpoints": [{**engines.endpoints()[0], "name": name}]}
            for name, engines in programs.items()
        },
        "lb_type": "cluster",
        "lb_policy": "cluster_metrics",
        "lb_config": {"mode": mode, "service_list": list(NAMES), "queue_size": QUEUE_SIZE, **more},
        "expose_decision": True,
    }


@contextmanager
def services(*arguments: str) -> Iterator[dict[str, Engines]]:
    """An engine in a process of its own for each service."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(Engines(1, *arguments)) for name in NAMES}


async def asked(balancer: Balancer, number: int, *, clients: int, stream: bool) -> list[Answer]:
    """Ask so often, so many at a time; gives the answers in the order of the requests. All must be good."""
    gate = asyncio.Semaphore(clients)
    async with httpx.AsyncClient(timeout=30) as client:

        async def one() -> Answer:
            async with gate:
                return await ask(client, balancer, body(tokens=8, stream=stream))

        answers = await asyncio.gather(*(one() for _ in range(number)))
    assert {answer.status for answer in answers} == {200}
    return answers


def share(answers: list[Answer], name: str) -> float:
    return sum(answer.endpoint == name for answer in answers) / len(answers)


async def follows(balancer: Balancer, swap: Swap, *, stream: bool, swaps: int) -> None:
    """The share follows the speed within 2 * queue_size requests, each time that the speeds swap."""
    slow, fast = NAMES
    await swap(slow)
    await asked(balancer, 2 * QUEUE_SIZE, clients=2, stream=stream)
    for _ in range(swaps):
        assert share(await asked(balancer, 40, clients=2, stream=stream), fast) >= 0.85
        await swap(fast)
        slow, fast = fast, slow
        turning = await asked(balancer, 2 * QUEUE_SIZE, clients=2, stream=stream)
        places = [number for number, answer in enumerate(turning) if answer.endpoint == slow]
        print(f"to {fast}: {len(places)} of {len(turning)} to the old one, the last was number {places[-1:]}")
    assert share(await asked(balancer, 40, clients=2, stream=stream), fast) >= 0.85


@asynccontextmanager
async def by_dripping(programs: dict[str, Engines]) -> AsyncIterator[Swap]:
    """The slow one takes 20 ms for each token."""

    async def swap(slow: str) -> None:
        for name, engines in programs.items():
            fault = "slow_drip" if name == slow else "none"
            await asyncio.to_thread(engines.fault, "sim-1", fault, interval_s=0.02)

    yield swap


@asynccontextmanager
async def by_others_prompts(programs: dict[str, Engines]) -> AsyncIterator[Swap]:
    """The slow one reads the prompts of others first: headers come at once, the first token late."""
    others: list[asyncio.Task[None]] = []

    async def keep_busy(client: httpx.AsyncClient, engines: Engines, who: int) -> None:
        url = f"http://127.0.0.1:{engines.ports[0]}/v1/chat/completions"
        turn = 0
        while True:
            turn += 1
            text = f"{who} {turn} " + "word " * 200  # no two begin alike, so none is found in a cache
            (await client.post(url, json=body(tokens=1, text=text))).raise_for_status()

    async def rest() -> None:
        for task in others:
            task.cancel()
        ended = await asyncio.gather(*others, return_exceptions=True)
        others.clear()
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended

    async with httpx.AsyncClient(timeout=30) as client:

        async def swap(slow: str) -> None:
            await rest()
            others.extend(asyncio.create_task(keep_busy(client, programs[slow], who)) for who in range(2))

        yield swap
        await rest()


async def swapped(folder: Path, mode: str, *, swaps: int) -> None:
    streams = mode == "LeastFirstTokenLatency"
    kind = ("--ttft", "0.01", "--tpot", "0.002", "--prefill", "2500", "--max-num-seqs", "64")
    with services(*kind) as programs, Balancer(folder, config(programs, mode)) as balancer:
        async with AsyncExitStack() as stack:
            way = by_others_prompts(programs) if streams else by_dripping(programs)
            swap = await stack.enter_async_context(way)
            await follows(balancer, swap, stream=streams, swaps=swaps)
        assert balancer.in_flight() == 0
        assert "Traceback" not in balancer.log()


@pytest.mark.parametrize("mode", ["LeastTotalLatency", "LeastFirstTokenLatency"])
async def test_the_share_follows_when_two_services_swap_their_speeds(tmp_path: Path, mode: str) -> None:
    await swapped(tmp_path, mode, swaps=1)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["LeastTotalLatency", "LeastFirstTokenLatency"])
async def test_the_share_follows_each_of_ten_swaps(tmp_path: Path, mode: str) -> None:
    await swapped(tmp_path, mode, swaps=10)


def held(stack: ExitStack, client: httpx.Client, balancer: Balancer, model: str, number: int) -> Counter[str]:
    """Open so many streams, one after the other, that last as long as the stack; gives who serves them."""
    chosen: Counter[str] = Counter()
    for _ in range(number):
        url = balancer.url + "/v1/chat/completions"
        response = stack.enter_context(client.stream("POST", url, json=body(model, tokens=4000, stream=True)))
        assert response.status_code == 200
        chosen[response.headers["x-ai-lb-endpoint"]] += 1
    return chosen


@pytest.mark.parametrize("shared", [True, False])
def test_least_busy_spreads_evenly_what_all_balancers_have_in_flight(tmp_path: Path, shared: bool) -> None:
    """One balancer fills `east`; the other one hears of it where there is a Redis."""
    with ExitStack() as stack:
        programs = stack.enter_context(services("--tpot", "0.05", "--max-num-seqs", "64"))
        redis: dict[str, Any] = {}
        if shared:
            port = stack.enter_context(redis_server()).port
            redis = {"serviceFQDN": "127.0.0.1", "servicePort": port}
        settings = config(programs, "LeastBusy", **redis)
        settings["routes"] = [
            {
                "name": "filling",
                "match": {"models": ["filling"]},
                "cluster": "east",
                "lb_policy": "global_least_request",
                "lb_config": redis,
            },
            {"name": "among-services"},
        ]
        first, second = (stack.enter_context(Balancer(tmp_path, settings)) for _ in range(2))
        client = stack.enter_context(httpx.Client(timeout=20))
        streams = stack.enter_context(ExitStack())
        assert held(streams, client, first, "filling", 6) == {"east": 6}
        if shared:
            # What one balancer places the others hear with the next beat of their ledger, within a second.
            wait_until(lambda: second.in_flight() == 6, within_s=3, what="the second has heard of them")
            assert held(streams, client, second, "sim", 6) == {"west": 6}
            wait_until(lambda: first.in_flight() == 12, within_s=3, what="the first has heard of them")
            assert held(streams, client, first, "sim", 6) == {"east": 3, "west": 3}
        else:
            assert held(streams, client, second, "sim", 6) == {"east": 3, "west": 3}
            assert held(streams, client, first, "sim", 6) == {"west": 6}
        streams.close()
        for balancer in (first, second):
            wait_until(lambda of=balancer: of.in_flight() == 0, within_s=3, what="nothing is counted")
            assert "Traceback" not in balancer.log()


async def test_least_busy_spreads_requests_evenly_over_equal_services(tmp_path: Path) -> None:
    kind = ("--ttft", "0.02", "--tpot", "0.005", "--max-num-seqs", "64")
    with services(*kind) as programs, Balancer(tmp_path, config(programs, "LeastBusy")) as balancer:
        answers = await asked(balancer, 300, clients=12, stream=False)
        counted = {name: engines.truth()["sim-1"] for name, engines in programs.items()}
    assert 0.45 <= share(answers, "east") <= 0.55
    assert sum(engine["total"] for engine in counted.values()) == 300
    assert all(5 <= engine["peak"] <= 8 for engine in counted.values()), counted
