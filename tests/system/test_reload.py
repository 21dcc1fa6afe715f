"""The configuration changes and the balancer ends while requests are in flight."""

import asyncio
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lb_core.config import Config, loads
from lb_core.errors import ConfigError
from tests.system.balancer import Balancer, Engines
from tests.system.clients import PATIENT
from tests.system.load import Load
from tests.waiting import eventually


def config(engines: Engines, names: list[str], **more: Any) -> dict[str, Any]:
    return {
        "clusters": {"engines": {"endpoints": [e for e in engines.endpoints() if e["name"] in names]}},
        "lb_policy": "global_least_request",
        **more,
    }


STAYS = "the configuration stays as it was: "
TAKEN = "the configuration was reloaded"


async def ready(balancer: Balancer) -> int:
    """The status of the page that tells whether it takes requests."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{balancer.metrics_port}/ready")).status_code


def verdicts(balancer: Balancer) -> list[str]:
    """What it said about files so far: each complaint about a bad one, TAKEN for a good one."""
    told = re.findall(f"ai-lb: (?:{STAYS}(.*)|{TAKEN})", balancer.log())
    return [complaint or TAKEN for complaint in told]


def due(balancer: Balancer, text: str) -> list[str]:
    """What it has to say about a file."""
    try:
        loads(text, str(balancer.config_path))
    except ConfigError as error:
        return error.lines()
    return [TAKEN]


async def judged(balancer: Balancer, said: list[str]) -> None:
    """Wait for as many verdicts as it has had to give; then it has given these and no others."""
    await eventually(lambda: len(verdicts(balancer)) >= len(said), f"it says {said[-1]}")
    assert verdicts(balancer) == said


def rewrite(balancer: Balancer, settings: dict[str, Any] | str) -> None:
    """Put another file in the place of the configuration, by renaming it over, as editors do."""
    if isinstance(settings, dict):
        settings = yaml.safe_dump(balancer.listening | settings)
    new = balancer.config_path.with_suffix(".new")
    new.write_text(settings)
    new.rename(balancer.config_path)


async def test_a_good_file_is_live_within_two_seconds_and_cuts_nothing(tmp_path: Path) -> None:
    slow = ("--tpot", "0.1", "--ttft", "0.05", "--max-num-seqs", "200")
    with Engines(3, *slow) as engines, Balancer(tmp_path, config(engines, ["sim-1", "sim-2"])) as balancer:
        async with Load([balancer], per_s=20, tokens=30) as load:
            await asyncio.sleep(1)
            rewrite(balancer, config(engines, ["sim-2", "sim-3"]))
            began = time.monotonic()
            await eventually(lambda: engines.truth()["sim-3"]["total"] > 0, within_s=2, what="sim-3 is used")
            seen = engines.truth()["sim-1"]["total"]
            assert engines.truth()["sim-1"]["open"] > 0, "streams go on where they are"
            assert time.monotonic() - began < 2.5
            await asyncio.sleep(1)
            assert engines.truth()["sim-1"]["total"] <= seen + 1
            await load.drain(within_s=30)
        assert set(load.results) == {"ok"}, load.results
        await eventually(lambda: balancer.in_flight() == 0, within_s=2, what="nothing is in flight")
        assert balancer.log().count("the configuration was reloaded") == 1


async def test_a_bad_file_changes_nothing_and_says_why_once(tmp_path: Path) -> None:
    with Engines(2) as engines, Balancer(tmp_path, config(engines, ["sim-1", "sim-2"])) as balancer:
        said: list[str] = []
        async with Load([balancer], per_s=30, tokens=3) as load:
            for bad in (
                "clusters: [",
                "clusters: {engines: {endpoints: [], balance: none}}\nrouts: []\n",
                "!!python/object:x {}\n",
            ):
                said += due(balancer, bad)
                rewrite(balancer, bad)
                await judged(balancer, said)
            await asyncio.sleep(2)
            await load.drain(within_s=20)
        assert set(load.results) == {"ok"}, load.results
        assert verdicts(balancer) == said, "each once"


def damaged(text: str, dice: random.Random) -> str:
    """The text with some characters changed. If it is good all the same, it leads where it led before."""
    before = loads(text)
    while True:
        characters = list(text)
        for _ in range(dice.randrange(1, 4)):
            characters[dice.randrange(len(characters))] = dice.choice("{}[]:- \n\t#&*!'x0\x00")
        found = "".join(characters)
        try:
            after = loads(found)
        except ConfigError:
            return found
        if leads_to(after) == leads_to(before):
            return found


def leads_to(loaded: Config) -> list[object]:
    return [
        [replace(each, name="") for cluster in loaded.clusters.values() for each in cluster.endpoints],
        [route.match for route in loaded.routes],
    ]


async def damaged_files(folder: Path, count: int) -> None:
    """One after the other under load, each until the balancer has said what it thinks of it."""
    dice = random.Random(5)
    with Engines(2) as engines, Balancer(folder, config(engines, ["sim-1", "sim-2"])) as balancer:
        good = balancer.config_path.read_text()
        last, said = good, list[str]()
        async with Load([balancer], per_s=40, tokens=3) as load:
            for _ in range(count):
                while (text := damaged(good, dice)) == last:
                    pass
                last = text
                said += due(balancer, text)
                rewrite(balancer, text)
                await judged(balancer, said)
            await load.drain(within_s=20)
        assert balancer.process is not None
        assert balancer.process.poll() is None
        assert "Traceback" not in balancer.log()
        assert set(load.results) == {"ok"}, load.results


async def test_damaged_files_under_load_are_each_judged_and_no_request_fails(tmp_path: Path) -> None:
    await damaged_files(tmp_path, 10)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_300_damaged_files_under_load_are_each_judged_and_no_request_fails(tmp_path: Path) -> None:
    await damaged_files(tmp_path, 300)


async def test_sigterm_with_100_streams_cuts_none(tmp_path: Path) -> None:
    slow = ("--tpot", "0.2", "--ttft", "0.05", "--max-num-seqs", "200")
    with (
        Engines(2, *slow) as engines,
        Balancer(tmp_path, config(engines, ["sim-1", "sim-2"], **PATIENT)) as balancer,
    ):
        async with Load([balancer], per_s=200, tokens=20) as load:
            await eventually(
                lambda: sum(engine["open"] for engine in engines.truth().values()) >= 100,
                within_s=10,
                what="100 streams run",
            )
            load.rest()
            await eventually(lambda: balancer.in_flight() == load.running, within_s=5, what="all are placed")
            assert balancer.process is not None
            balancer.process.send_signal(signal.SIGTERM)
            await load.drain(within_s=30)
            assert load.results["ok"] >= 100
            assert set(load.results) == {"ok"}, load.results
            assert await asyncio.to_thread(balancer.process.wait, 10) == 0
        assert "Traceback" not in balancer.log()


async def test_a_second_signal_ends_the_drain_at_once(tmp_path: Path) -> None:
    slow = ("--tpot", "0.2", "--ttft", "0.05")
    with Engines(1, *slow) as engines, Balancer(tmp_path, config(engines, ["sim-1"], **PATIENT)) as balancer:
        async with Load([balancer], per_s=50, tokens=200) as load:
            await eventually(lambda: engines.truth()["sim-1"]["open"] > 3, within_s=10, what="streams run")
            load.rest()
            await eventually(lambda: balancer.in_flight() == load.running, within_s=5, what="all are placed")
            assert balancer.process is not None
            assert await ready(balancer) == 200
            balancer.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(1)
            assert balancer.process.poll() is None
            assert await ready(balancer) == 503, "no balancer before it should send anything more"
            balancer.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(balancer.process.wait, 6) == 0
            await load.drain(within_s=10)
        assert set(load.results) == {"cut"}, load.results


async def test_a_drain_ends_after_its_time_out(tmp_path: Path) -> None:
    slow = ("--tpot", "0.2", "--ttft", "0.05")
    settings = {"drain_timeout": 1}
    with Engines(1, *slow) as engines:
        with Balancer(tmp_path, config(engines, ["sim-1"], **settings)) as balancer:
            async with Load([balancer], per_s=50, tokens=200) as load:
                await eventually(
                    lambda: engines.truth()["sim-1"]["open"] > 3, within_s=10, what="streams run"
                )
                load.rest()
                assert balancer.process is not None
                balancer.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(balancer.process.wait, 8) == 0
                await load.drain(within_s=10)
        await eventually(lambda: engines.truth()["sim-1"]["open"] == 0, within_s=2, what="nothing is open")


async def test_members_come_and_go_with_an_endpoints_file(tmp_path: Path) -> None:
    listed = tmp_path / "engines.yaml"
    slow = ("--tpot", "0.05", "--ttft", "0.01", "--max-num-seqs", "200")
    with Engines(2, *slow) as engines:
        first, second = engines.endpoints()
        listed.write_text(yaml.safe_dump([first]))
        settings = {"clusters": {"engines": {"endpoints_file": "engines.yaml"}}}
        with Balancer(tmp_path, settings) as balancer:
            async with Load([balancer], per_s=20, tokens=20) as load:
                await asyncio.sleep(1)
                assert engines.truth()["sim-2"]["total"] == 0
                listed.write_text(yaml.safe_dump([second]))
                await eventually(
                    lambda: engines.truth()["sim-2"]["total"] > 3, within_s=3, what="the new one is used"
                )
                seen = engines.truth()["sim-1"]["total"]
                await asyncio.sleep(0.5)
                assert engines.truth()["sim-1"]["total"] == seen
                await load.drain(within_s=20)
            assert set(load.results) == {"ok"}, load.results


async def test_a_dns_name_is_its_addresses(tmp_path: Path) -> None:
    with Engines(1) as engines:
        url = f"dns+http://localhost:{engines.ports[0]}"
        settings = {
            "clusters": {"engines": {"endpoints": [{"url": url, "name": "engine"}]}},
            "expose_decision": True,
        }
        with Balancer(tmp_path, settings) as balancer, httpx.Client(timeout=10) as client:
            answer = client.get(balancer.url + "/v1/models")
            assert answer.status_code == 200
            assert re.fullmatch(r"engine-[0-9a-f]{6}", answer.headers["x-ai-lb-endpoint"])


async def test_an_endpoint_that_is_taken_out_and_put_back_at_once_is_counted_right(tmp_path: Path) -> None:
    slow = ("--tpot", "0.1", "--ttft", "0.05", "--max-num-seqs", "200")
    with (
        Engines(2, *slow) as engines,
        Balancer(tmp_path, config(engines, ["sim-1", "sim-2"], **PATIENT)) as balancer,
    ):

        def reloads() -> int:
            return balancer.log().count("the configuration was reloaded")

        async with Load([balancer], per_s=20, tokens=25) as load:
            await eventually(lambda: balancer.in_flight() > 10, within_s=10, what="streams run")
            lowest = 0
            for number in range(2):
                rewrite(balancer, config(engines, ["sim-2", "sim-1"][: 1 + number], **PATIENT))
                for _ in range(100):
                    counts = [engine["open"] for engine in engines.truth().values()]
                    lowest = min(lowest, balancer.in_flight(), *counts)
                    if reloads() > number:
                        break
                    await asyncio.sleep(0.05)
                assert reloads() == number + 1
            await load.drain(within_s=30)
        assert lowest == 0
        assert set(load.results) == {"ok"}, load.results
        await eventually(lambda: balancer.in_flight() == 0, within_s=3, what="nothing is in flight")
        assert "Traceback" not in balancer.log()


async def test_without_any_endpoint_left_the_balancer_lives_and_serves_when_one_comes(tmp_path: Path) -> None:
    with Engines(1) as engines, Balancer(tmp_path, config(engines, ["sim-1"])) as balancer:
        async with httpx.AsyncClient(base_url=balancer.url, timeout=20) as client:

            async def status(wanted: int) -> httpx.Response:
                async with asyncio.timeout(10):
                    while (answer := await client.get("/v1/models")).status_code != wanted:
                        await asyncio.sleep(0.05)
                return answer

            await status(200)
            rewrite(balancer, config(engines, []))
            answer = await status(503)
            assert answer.json()["error"]["code"] == "no_endpoint"
            assert {(await client.get("/v1/models")).status_code for _ in range(20)} == {503}
            rewrite(balancer, config(engines, ["sim-1"]))
            await status(200)
            assert {(await client.get("/v1/models")).status_code for _ in range(20)} == {200}
