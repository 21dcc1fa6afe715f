"""Several real balancers, one Redis: what is counted is what is open, whatever dies."""

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from redis import Redis

from tests.redis.servers import RedisServer
from tests.system.balancer import Balancer, Engines
from tests.system.load import Load
from tests.system.sharing import PASSWORD, config, counted, opened
from tests.waiting import eventually


async def killed_once(
    folder: Path, engines: Engines, redis: RedisServer, *, per_s: float, tokens: int, seed: int
) -> None:
    """Three balancers under load, one of them killed; the counts must be those of the two others."""
    with ExitStack() as stack:
        balancers = [stack.enter_context(Balancer(folder, config(engines, redis.port))) for _ in range(3)]
        async with Load(balancers, per_s=per_s, tokens=tokens, seed=seed) as load:
            await asyncio.sleep(2)
            victim = balancers[seed % 3]
            assert victim.process is not None
            load.balancers.remove(victim)
            victim.process.send_signal(signal.SIGKILL)
            await asyncio.sleep(5.5)
            load.rest()  # what is open stays open: the sums can be compared
            await eventually(
                lambda: counted(redis) == opened(engines) != {},
                within_s=1.5,
                what="the shared counts are what is open at the engines",
            )
            await load.drain(within_s=30)
            await eventually(lambda: counted(redis) == {}, within_s=2, what="nothing is counted at the end")
            for survivor in load.balancers:
                assert set(load.by_balancer[survivor.port]) == {"ok"}, load.results


def long_streams() -> Engines:
    """Streams of 20 tokens take about 3 s."""
    return Engines(4, "--tpot", "0.15", "--ttft", "0.05", "--max-num-seqs", "400")


@pytest.mark.parametrize("run", range(3))
async def test_killing_one_of_three_balancers_leaves_no_count(
    tmp_path: Path, redis: RedisServer, run: int
) -> None:
    with long_streams() as engines:
        await killed_once(tmp_path, engines, redis, per_s=25, tokens=20, seed=run)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_killing_one_of_three_balancers_leaves_no_count_20_of_20(
    tmp_path: Path, redis: RedisServer
) -> None:
    for run in range(20):
        with Engines(4, "--tpot", "0.25", "--ttft", "0.05", "--max-num-seqs", "400") as engines:
            await killed_once(tmp_path, engines, redis, per_s=100, tokens=20, seed=run)


async def test_later_turns_reach_the_endpoint_of_the_first_through_any_balancer(
    tmp_path: Path, redis: RedisServer
) -> None:
    with Engines(3, "--tpot", "0.001", "--ttft", "0.001") as engines, ExitStack() as stack:
        settings = config(engines, redis.port, "prefix_cache")
        balancers = [stack.enter_context(Balancer(tmp_path, settings)) for _ in range(2)]
        client = stack.enter_context(httpx.Client(timeout=20))
        endpoints = set()
        for conversation in range(12):
            messages = [{"role": "user", "content": f"conversation {conversation}"}]
            homes = set()
            for turn in range(4):
                url = balancers[turn % 2].url + "/v1/chat/completions"
                answer = client.post(url, json={"model": "sim", "messages": messages})
                wanted = "no_prefix" if turn == 0 else "prefix"
                assert answer.headers["x-ai-lb-reason"] == wanted, (conversation, turn)
                homes.add(answer.headers["x-ai-lb-endpoint"])
                messages.append(answer.json()["choices"][0]["message"])
                messages.append({"role": "user", "content": f"turn {turn}"})
            assert len(homes) == 1
            endpoints |= homes
        assert endpoints == set(engines.names)
        stored = Redis(port=redis.port, password=PASSWORD)
        kept = [key for key in stored.scan_iter("*") if b"conversation" in (stored.dump(key) or b"")]
        assert kept == []
