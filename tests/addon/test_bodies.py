"""Broken bodies through the proxy: each reaches the endpoint as it came, and none leaves a trace."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.addon import engine as engines
from tests.addon.engine import ScriptedEngine
from tests.addon.proxy import Proxy
from tests.core.test_request import PATHS, broken_body
from tests.waiting import until


async def sent(folder: Path, count: int, seed: int) -> None:
    """Send so many over a few connections."""
    dice = random.Random(seed)
    async with ScriptedEngine(engines.answer) as engine:
        config = {"clusters": {"c": {"endpoints": [engine.endpoint]}}, "lb_policy": "prefix_cache"}
        async with Proxy(folder, config) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            for _ in range(count):
                body, path = broken_body(dice), dice.choice(PATHS)
                head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                async with asyncio.timeout(20):
                    assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
                assert engine.bodies.pop() == body
            writer.close()
            await until(proxy.is_clean, "nothing is in flight")
            runtime = proxy.addon._runtime
            assert runtime is not None
            assert not runtime.stats.registry.get_sample_value("ai_lb_hook_errors_total")


async def test_500_broken_bodies_arrive_as_they_were_sent(tmp_path: Path) -> None:
    await sent(tmp_path, 500, seed=1)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_10000_broken_bodies_arrive_as_they_were_sent(tmp_path: Path) -> None:
    await sent(tmp_path, 10_000, seed=2)
