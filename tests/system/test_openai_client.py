"""The official client, through a real mitmdump, to three simulated engines."""

import asyncio
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.system.balancer import Balancer, Engines
from tests.waiting import wait_until

IMAGE = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def config(engines: Engines, **more: Any) -> dict[str, Any]:
    return {
        "clusters": {"engines": {"endpoints": engines.endpoints()}},
        "lb_policy": "global_least_request",
        "lb_config": {},
        "expose_decision": True,
        **more,
    }


def ask(number: int) -> dict[str, Any]:
    """One of several shapes of request; its text is its number, which the answer must hold."""
    text = f"number {number}"
    content: Any = text
    if number % 5 == 1:
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    asked: dict[str, Any] = {
        "model": "sim",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}],
        "max_tokens": 24,
    }
    if number % 5 == 2:
        asked |= {"tools": TOOLS}
    return asked


async def one(client: AsyncOpenAI, number: int) -> str:
    """Ask once, streaming every second time; gives the answer's text."""
    if number % 2:
        stream = await client.chat.completions.create(**ask(number), stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in stream if part.choices])
    answer = await client.chat.completions.create(**ask(number))
    return answer.choices[0].message.content or ""


async def test_600_requests_at_32_in_parallel_are_answered_right_and_spread_evenly(
    tmp_path: Path, engines: Engines
) -> None:
    with Balancer(tmp_path, config(engines)) as balancer:
        gate = asyncio.Semaphore(32)
        async with AsyncOpenAI(
            base_url=balancer.url + "/v1", api_key="k", max_retries=0, timeout=60
        ) as client:

            async def gated(number: int) -> str:
                async with gate:
                    return await one(client, number)

            answers = await asyncio.gather(*(gated(number) for number in range(600)))
        for number, answer in enumerate(answers):
            assert f"number {number}" in answer
        assert balancer.in_flight() == 0
        truth = engines.truth()
        totals = [truth[name]["total"] for name in engines.names]
        assert sum(totals) == 600
        assert all(180 <= total <= 220 for total in totals), totals
        assert all(truth[name]["open"] == 0 for name in engines.names)


async def test_a_third_of_the_clients_leaving_at_random_moments_leaves_no_count(tmp_path: Path) -> None:
    dice = random.Random(7)
    with (
        Engines(3, "--ttft", "0.1", "--tpot", "0.01", "--max-num-seqs", "64") as engines,
        Balancer(tmp_path, config(engines)) as balancer,
    ):
        gate = asyncio.Semaphore(32)
        async with AsyncOpenAI(
            base_url=balancer.url + "/v1", api_key="k", max_retries=0, timeout=60
        ) as client:

            async def leave(number: int) -> None:
                # From before the headers to the end of the stream.
                try:
                    async with asyncio.timeout(dice.uniform(0.001, 0.4)):
                        await one(client, number)
                except TimeoutError:
                    return

            async def gated(number: int) -> None:
                async with gate:
                    if number % 3:
                        assert f"number {number}" in await one(client, number)
                    else:
                        await leave(number)

            await asyncio.gather(*(gated(number) for number in range(600)))
        wait_until(
            lambda: all(engine["open"] == 0 for engine in engines.truth().values()),
            within_s=1,
            what="the engines saw that the clients left",
        )
        wait_until(lambda: balancer.in_flight() == 0, within_s=2, what="no request is counted")
        truth = engines.truth()
        assert sum(engine["aborted"] for engine in truth.values()) > 50
        assert "Traceback" not in balancer.log()


def test_the_synchronous_client_and_the_other_apis(tmp_path: Path, engines: Engines) -> None:
    with (
        Balancer(tmp_path, config(engines)) as balancer,
        OpenAI(base_url=balancer.url + "/v1", api_key="k", max_retries=0, timeout=30) as client,
    ):
        assert client.models.list().data
        messages: Any = [{"role": "user", "content": "x"}]
        called = client.chat.completions.create(
            model="sim", messages=messages, tools=TOOLS, tool_choice="required"
        )
        calls = called.choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].type == "function"
        assert calls[0].function.name == "look_up"
        with client.chat.completions.create(
            model="sim", messages=messages, stream=True, stream_options={"include_usage": True}
        ) as stream:
            parts = list(stream)
        assert parts[-1].usage is not None
        assert parts[-1].usage.prompt_tokens > 0
        assert client.completions.create(model="sim", prompt="number 1").choices[0].text
        assert (
            client.embeddings.create(model="sim", input=["a", "b"], encoding_format="float").data[0].embedding
        )
        assert client.responses.create(model="sim", input="number 2").output_text
        assert balancer.in_flight() == 0


def test_h14_every_other_path_and_method_is_balanced_and_counted(tmp_path: Path, engines: Engines) -> None:
    with Balancer(tmp_path, config(engines)) as balancer, httpx.Client(base_url=balancer.url) as client:
        assert client.get("/health").status_code == 200
        assert client.head("/v1/models").headers["x-ai-lb-endpoint"] in engines.names
        assert client.request("OPTIONS", "/v1/models").headers["x-ai-lb-endpoint"] in engines.names
        assert client.put("/v1/files/1", content=b"\xff" * 3_000_000).status_code == 404
        assert client.delete("/v1/files/1").status_code == 404
        assert balancer.metric("ai_lb_requests_total") == 5
        assert balancer.in_flight() == 0


def test_interrupt_during_streams_ends_cleanly(tmp_path: Path) -> None:
    with Engines(1, "--tpot", "0.05") as engines, Balancer(tmp_path, config(engines)) as balancer:
        with httpx.Client(timeout=20) as client:
            body = {
                "model": "sim",
                "stream": True,
                "max_tokens": 4000,
                "messages": [{"role": "user", "content": "x"}],
            }
            with client.stream("POST", balancer.url + "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data:")
                assert balancer.stop(signal.SIGINT) == 0
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
        assert "Traceback" not in balancer.log()
        assert "rror" not in balancer.log()
        wait_until(lambda: engines.truth()["sim-1"]["open"] == 0, within_s=2, what="the engine aborts")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_h18_errors_of_the_balancer_come_in_the_form_that_clients_parse(
    tmp_path: Path, engines: Engines, path: str
) -> None:
    full = {"name": "full", "url": f"http://127.0.0.1:{engines.ports[0]}", "max_in_flight": 1}
    settings = {
        "clusters": {
            "none": {"endpoints": []},
            "full": {"endpoints": [full]},
            "choosy": {"endpoints": engines.endpoints(models=["llama-*"])},
        },
        "routes": [
            {"name": "none", "match": {"models": "none"}, "cluster": "none"},
            {"name": "full", "match": {"models": "full"}, "cluster": "full"},
            {"name": "choosy", "match": {"models": "qwen"}, "cluster": "choosy"},
        ],
    }
    with Balancer(tmp_path, settings) as balancer, httpx.Client(timeout=20) as client:

        def request(model: str, **more: Any) -> dict[str, Any]:
            return {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 9, **more}

        def ask(model: str) -> httpx.Response:
            return client.post(balancer.url + path, json=request(model))

        got = {model: ask(model) for model in ("unknown", "none", "qwen")}
        with client.stream(
            "POST",
            balancer.url + "/v1/chat/completions",
            json=request("full", stream=True, max_tokens=4000),
        ) as held:
            lines = held.iter_lines()  # kept: letting go of it would close the stream
            next(lines)
            got["full"] = ask("full")
        statuses = {model: answer.status_code for model, answer in got.items()}
        assert statuses == {"unknown": 404, "none": 503, "qwen": 404, "full": 429}
        for model in ("none", "full"):
            assert int(got[model].headers["retry-after"]) >= 1
        for answer in got.values():
            error = answer.json()["error"]
            assert error["message"]
            assert error["type"]
            assert (answer.json().get("type") == "error") == (path == "/v1/messages")
            assert "127.0.0.1" not in answer.text
            assert "mitmproxy" not in str(answer.headers)
        wait_until(lambda: balancer.in_flight() == 0, within_s=2, what="nothing is counted")


async def test_the_client_raises_its_own_errors(tmp_path: Path, engines: Engines) -> None:
    settings: dict[str, Any] = {"clusters": {"none": {"endpoints": []}}}
    with Balancer(tmp_path, settings) as balancer:
        async with AsyncOpenAI(base_url=balancer.url + "/v1", api_key="k", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="m", messages=[])
    assert caught.value.status_code == 503
    assert caught.value.code == "no_endpoint"
