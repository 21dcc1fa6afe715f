"""Several real balancers, one Redis: what is counted is what is open, whatever dies."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.redis.servers import RedisServer, counts_in, redis_server
from tests.system.balancer import Balancer, Engines
from tests.system.load import Load, eventually

PASSWORD = "canary-password-of-redis"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server(password=PASSWORD) as server:
        yield server


def config(engines: Engines, redis: RedisServer, policy: str = "global_least_request") -> dict[str, Any]:
    return {
        "clusters": {"engines": {"endpoints": engines.endpoints()}},
        "lb_policy": policy,
        "lb_config": {
            "serviceFQDN": "127.0.0.1",
            "servicePort": redis.port,
            "username": "default",
            "password": PASSWORD,
        },
        "expose_decision": True,
    }


def opened(engines: Engines) -> dict[str, int]:
    """Requests open at each engine, zeros left out: the truth."""
    return {name: engine["open"] for name, engine in engines.truth().items() if engine["open"]}


def counted(redis: RedisServer) -> dict[str, int]:
    """The shared counts."""
    return {name: count for name, count in counts_in(redis.client, "engines").items() if count}


async def killed_once(
    folder: Path, engines: Engines, redis: RedisServer, *, per_s: float, tokens: int, seed: int
) -> None:
    """Three balancers under load, one of them killed; the counts must be those of the two others."""
    with ExitStack() as stack:
        balancers = [stack.enter_context(Balancer(folder, config(engines, redis))) for _ in range(3)]
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


async def leaving(folder: Path, redis: RedisServer, *, seconds: float, per_s: float) -> None:
    with (
        Engines(3, "--tpot", "0.02", "--ttft", "0.05", "--max-num-seqs", "400") as engines,
        ExitStack() as stack,
    ):
        balancers = [stack.enter_context(Balancer(folder, config(engines, redis))) for _ in range(2)]
        async with Load(balancers, per_s=per_s, tokens=10, leave=0.3, length_s=0.4) as load:
            for _ in range(int(seconds / 0.1)):
                await asyncio.sleep(0.1)
                counts = await asyncio.to_thread(counts_in, redis.client, "engines")
                assert all(count >= 0 for count in counts.values())
            await load.drain(within_s=30)
            await eventually(lambda: counted(redis) == {}, within_s=2, what="nothing is counted")
            await eventually(lambda: opened(engines) == {}, within_s=2, what="nothing is open")
        assert load.results["left"] > 0.15 * load.results.total()
        assert set(load.results) == {"ok", "left"}, load.results


async def test_clients_that_leave_at_random_moments_leave_no_count(
    tmp_path: Path, redis: RedisServer
) -> None:
    await leaving(tmp_path, redis, seconds=10, per_s=80)


async def faulty(folder: Path, redis: RedisServer, fault: Any, heal: Any) -> None:
    """Two balancers under load through a fault of the server: no client sees it, the counts come back."""
    with (
        Engines(3, "--tpot", "0.1", "--ttft", "0.05", "--max-num-seqs", "400") as engines,
        ExitStack() as stack,
    ):
        balancers = [stack.enter_context(Balancer(folder, config(engines, redis))) for _ in range(2)]
        async with Load(balancers, per_s=40, tokens=15) as load:
            await asyncio.sleep(1)
            await asyncio.to_thread(fault)
            await asyncio.sleep(3)
            await asyncio.to_thread(heal)
            await asyncio.sleep(1)
            load.rest()
            await eventually(
                lambda: counted(redis) == opened(engines) != {},
                within_s=1.4,
                what="the shared counts are what is open at the engines",
            )
            await load.drain(within_s=30)
            await eventually(lambda: counted(redis) == {}, within_s=2, what="nothing is counted")
        assert set(load.results) == {"ok"}, load.results
        for balancer in balancers:
            log = balancer.log()
            assert PASSWORD not in log
            assert "Traceback" not in log
            lines = [line for line in log.splitlines() if "counting in this process alone" in line]
            assert len(lines) <= 2, lines


async def test_redis_killed_and_restarted_empty_is_not_seen_by_clients(
    tmp_path: Path, redis: RedisServer
) -> None:
    await faulty(tmp_path, redis, redis.kill, redis.start)


async def test_redis_frozen_is_not_seen_by_clients(tmp_path: Path, redis: RedisServer) -> None:
    await faulty(tmp_path, redis, redis.freeze, redis.thaw)


async def test_redis_flushed_is_not_seen_by_clients(tmp_path: Path, redis: RedisServer) -> None:
    await faulty(tmp_path, redis, redis.client.flushall, redis.client.script_flush)


async def test_later_turns_reach_the_endpoint_of_the_first_through_any_balancer(
    tmp_path: Path, redis: RedisServer
) -> None:
    with Engines(3, "--tpot", "0.001", "--ttft", "0.001") as engines, ExitStack() as stack:
        settings = config(engines, redis, "prefix_cache")
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
