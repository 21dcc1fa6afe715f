"""The simulated engines over real sockets: what clients, scrapers and a balancer's tests rely on."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mitmproxy import exceptions
from mitmproxy.test import taddons
from openai import AsyncOpenAI, NotFoundError, OpenAIError
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from addons.sim import SimConfig, SimFleet, SimServer
from addons.sim.blocks import BlockCache
from addons.sim.program import parse_ports
from addons.sim.prompt import tokens
from addons.sim_engines import SimEngines
from tests.waiting import free_port, until

INSTANT = SimConfig(ttft_base_s=0.0, prefill_tokens_per_s=math.inf, tpot_s=0.0)
CHAT = "/v1/chat/completions"

# Families of the real page (vLLM 0.32.0), as (type, label names); `le` and `_created` are left out.
_MODEL = frozenset({"engine", "model_name"})
REAL_FAMILIES = {
    "vllm:num_requests_running": ("gauge", _MODEL),
    "vllm:num_requests_waiting": ("gauge", _MODEL),
    "vllm:num_requests_waiting_by_reason": ("gauge", _MODEL | {"reason"}),
    "vllm:engine_sleep_state": ("gauge", _MODEL | {"sleep_state"}),
    "vllm:kv_cache_usage_perc": ("gauge", _MODEL),
    "vllm:prefix_cache_queries": ("counter", _MODEL),
    "vllm:prefix_cache_hits": ("counter", _MODEL),
    "vllm:num_preemptions": ("counter", _MODEL),
    "vllm:prompt_tokens": ("counter", _MODEL),
    "vllm:generation_tokens": ("counter", _MODEL),
    "vllm:request_success": ("counter", _MODEL | {"finished_reason"}),
    "vllm:admission_rejections": ("counter", frozenset({"model_name", "reason"})),
    "vllm:time_to_first_token_seconds": ("histogram", _MODEL),
    "vllm:e2e_request_latency_seconds": ("histogram", _MODEL),
    "vllm:lora_requests_info": (
        "gauge",
        frozenset({"max_lora", "running_lora_adapters", "waiting_lora_adapters"}),
    ),
}


@asynccontextmanager
async def engine(config: SimConfig = INSTANT, **changes: Any) -> AsyncIterator[SimServer]:
    async with SimFleet([replace(config, **changes)]) as fleet:
        yield fleet.engines["sim-1"]


def client(server: SimServer) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10)


def chat_body(text: str = "hello", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream, **more}


async def post(server: SimServer, body: Any, path: str = CHAT) -> tuple[int, bytes]:
    """Status and whole body; the connection is not reused."""
    async with aiohttp.ClientSession() as session, session.post(server.url + path, json=body) as response:
        return response.status, await response.read()


async def get(server: SimServer, path: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(server.url + path) as response:
        return response.status, await response.read()


class Raw:
    """A client on a bare socket: it sees resets, ends and silence as they come."""

    def __init__(self, server: SimServer, body: Any, path: str = CHAT) -> None:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        self._request = head.encode() + data
        self._port = server.port
        self.seen = b""

    async def __aenter__(self) -> Raw:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writer.write(self._request)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(5):
            while text not in self.seen:
                data = await self.reader.read(65536)
                assert data, f"ended before {text!r}: {self.seen!r}"
                self.seen += data

    async def end(self, within_s: float = 5.0) -> str:
        """How it ends: "eof", "reset", or "silence" if it does not."""
        try:
            async with asyncio.timeout(within_s):
                while data := await self.reader.read(65536):
                    self.seen += data
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "silence"
        return "eof"


async def test_a_chat_answer_echoes_the_last_user_text_and_is_as_long_as_asked() -> None:
    async with engine() as server, client(server) as api:
        answer = await api.chat.completions.create(
            model="any", messages=[{"role": "user", "content": "the marker 4711"}], max_tokens=30
        )
        assert "sim-1 says: the marker 4711" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 30


async def test_a_stream_has_role_tokens_finish_reason_usage_and_the_same_text() -> None:
    async with engine(INSTANT, tpot_s=0.001) as server, client(server) as api:
        stream = await api.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "marker"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.startswith("sim-1 says: marker")
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 16
        status, raw = await post(server, chat_body(stream=True))
        assert status == 200
        assert raw.endswith(b"data: [DONE]\n\n")


async def test_the_other_apis_answer_too() -> None:
    async with engine() as server, client(server) as api:
        completion = await api.completions.create(model="m", prompt="marker", stream=False)
        assert "marker" in completion.choices[0].text
        pieces = await api.completions.create(model="m", prompt="marker", stream=True)
        assert "marker" in "".join([chunk.choices[0].text async for chunk in pieces])
        response = await api.responses.create(model="m", input="marker")
        assert "marker" in response.output_text
        events = await api.responses.create(model="m", input="marker", stream=True)
        kinds = [event.type async for event in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        vectors = await api.embeddings.create(model="m", input=["a b", "c"], encoding_format="float")
        assert len(vectors.data) == 2
        assert [model.id async for model in api.models.list()] == ["sim-model"]
    async with engine() as server:
        body = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": "marker"}]}
        _, whole = await post(server, body, "/v1/messages")
        assert "marker" in json.loads(whole)["content"][0]["text"]
        _, stream = await post(server, {**body, "stream": True}, "/v1/messages")
        assert stream.startswith(b"event: message_start\n")
        assert b'"output_tokens":20' in stream
        assert stream.endswith(b'data: {"type":"message_stop"}\n\n')
        assert json.loads((await get(server, "/version"))[1]) == {"version": "0.32.0"}


async def test_a_required_tool_is_called_with_json_arguments() -> None:
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    async with engine() as server, client(server) as api:
        ask: Any = {"model": "m", "messages": [{"role": "user", "content": "marker"}], "tools": [tool]}
        answer = await api.chat.completions.create(**ask, tool_choice="required")
        call = answer.choices[0].message.tool_calls[0]
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "look_up"
        assert "marker" in json.loads(call.function.arguments)["text"]
        stream = await api.chat.completions.create(**ask, tool_choice="required", stream=True)
        deltas = [chunk.choices[0].delta.tool_calls async for chunk in stream]
        arguments = "".join(delta[0].function.arguments for delta in deltas if delta)
        assert "marker" in json.loads(arguments)["text"]


async def test_wrong_requests_get_errors_in_openai_form() -> None:
    async with engine(INSTANT, models=("known",), adapters=("ad1",)) as server, client(server) as api:
        with pytest.raises(NotFoundError, match="nobody"):
            await api.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        for model in ("known", "ad1"):
            await api.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])
        known: dict[str, Any] = {**chat_body(), "model": "known"}
        bodies: list[Any] = [[], {}, {"messages": "x"}, {**known, "max_tokens": 0}]
        bodies += [{**known, "max_tokens": 10**9}, {**known, "model": 1}, {**known, "messages": [1]}]
        for body in bodies:
            status, raw = await post(server, body)
            assert status == 400, body
            assert json.loads(raw)["error"]["code"] == 400
        assert (await post(server, {}, "/v1/nothing"))[0] == 404


async def test_images_and_bodies_of_many_megabytes_are_taken() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (20 << 20)}},
        {"type": "text", "text": "what is it?"},
    ]
    async with engine() as server:
        status, raw = await post(server, {"messages": [{"role": "user", "content": parts}]})
        assert status == 200
        assert 256 < json.loads(raw)["usage"]["prompt_tokens"] < 300


async def test_a_known_prefix_is_counted_as_cached_and_answers_sooner() -> None:
    loop = asyncio.get_running_loop()
    async with engine(INSTANT, prefill_tokens_per_s=2_000) as server:
        took, cached = [], []
        for question in ("first?", "second?"):
            start = loop.time()
            _, raw = await post(server, chat_body("word " * 1000 + question))
            took.append(loop.time() - start)
            cached.append(json.loads(raw)["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == 0
        assert cached[1] > 900
        assert took[0] > took[1]


async def test_the_next_turn_of_a_conversation_finds_the_answer_of_the_last_one() -> None:
    async with engine() as server:
        turns = [{"role": "user", "content": "word " * 20}]
        _, raw = await post(server, {"messages": turns, "max_tokens": 100})
        text = json.loads(raw)["choices"][0]["message"]["content"]
        turns += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
        _, raw = await post(server, {"messages": turns})
        assert json.loads(raw)["usage"]["prompt_tokens_details"]["cached_tokens"] > 100


async def test_tokens_join_to_the_text_and_a_cut_text_splits_alike() -> None:
    text = "  Ein längerer Satz,\nmit 漢字漢字漢字 und Enden  "
    pieces = tokens(text)
    assert "".join(pieces) == text
    assert tokens("".join(pieces[:7])) == pieces[:7]


async def test_the_block_cache_stays_within_its_capacity_and_evicts_the_oldest_idle() -> None:
    cache = BlockCache(4)
    assert cache.acquire([1, 2], 1) == 0
    assert cache.acquire([3, 4], 0) is None
    cache.release([1, 2], 1, answer=[])
    assert cache.usage == 0
    assert cache.acquire([1, 2], 0) == 2
    assert cache.acquire([1, 5], 1) == 1
    assert cache.usage == 1
    cache.release([1, 2], 0)
    cache.release([1, 5], 1, answer=[6])
    assert cache.acquire([7, 8, 9], 0) == 0
    assert cache.acquire([1], 0) == 1
    assert cache.usage == 1


async def test_what_finds_no_seat_waits_and_a_full_queue_answers_503() -> None:
    async with engine(INSTANT, ttft_base_s=0.6, max_num_seqs=2, max_queue=1) as server:
        first = [asyncio.create_task(post(server, chat_body(str(n)))) for n in range(3)]
        await until(lambda: (server.engine.running, server.engine.waiting) == (2, 1))
        page = (await get(server, "/metrics"))[1].decode()
        assert 'vllm:num_requests_running{engine="0",model_name="sim-model"} 2.0' in page
        assert 'vllm:num_requests_waiting{engine="0",model_name="sim-model"} 1.0' in page
        status, raw = await post(server, chat_body())
        assert status == 503
        assert json.loads(raw)["error"]["type"] == "Service Unavailable"
        assert (await get(server, "/health"))[0] == 200
        assert [status for status, _ in await asyncio.gather(*first)] == [200, 200, 200]
        assert server.engine.counters.rejections == 1
        assert server.engine.cache.usage == 0


async def test_a_queued_stream_has_its_headers_before_it_has_a_seat() -> None:
    async with (
        engine(INSTANT, ttft_base_s=0.5, max_num_seqs=1) as server,
        Raw(server, chat_body(stream=True)),
        Raw(server, chat_body(stream=True)) as queued,
    ):
        await queued.until(b"\r\n\r\n")
        assert server.engine.waiting == 1
        assert b"data:" not in queued.seen
        await queued.until(b"[DONE]")


async def test_the_metrics_page_has_the_names_labels_and_types_of_the_real_one() -> None:
    async with engine(INSTANT, adapters=("ad1",)) as server:
        await post(server, {**chat_body(), "model": "ad1"})
        seen = {}
        for family in text_string_to_metric_families((await get(server, "/metrics"))[1].decode()):
            labels = {name for sample in family.samples for name in sample.labels} - {"le"}
            seen[family.name] = (family.type, frozenset(labels))
        config = seen.pop("vllm:cache_config_info")
        assert config[0] == "gauge"
        assert {"engine", "block_size", "num_gpu_blocks", "kv_cache_size_tokens"} <= config[1]
        assert {name: shape for name, shape in seen.items() if not name.endswith("_created")} == REAL_FAMILIES
        assert set(server.engine.lora_sets) == {"", "ad1"}
    async with engine() as server:
        assert b"lora_requests_info" not in (await get(server, "/metrics"))[1]


async def test_a_client_that_leaves_is_an_abort_at_once_and_frees_everything() -> None:
    async with engine(INSTANT, ttft_base_s=30, max_num_seqs=1) as server:
        for stream in (True, False):
            async with Raw(server, chat_body(stream=stream)):
                await until(lambda: server.engine.running == 1)
                async with Raw(server, chat_body(stream=stream)):
                    await until(lambda: server.engine.waiting == 1)
                await until(lambda: server.engine.waiting == 0, within_s=1)
            await until(lambda: server.truth.open == 0, within_s=1)
            assert server.engine.running == 0
            assert server.engine.cache.usage == 0
        assert (server.truth.total, server.truth.aborted, server.truth.finished) == (4, 4, 0)
        assert server.truth.aborts[-1].path == CHAT


async def test_the_truth_adds_up_and_a_reset_zeroes_it() -> None:
    async with SimFleet.of([0, 0], INSTANT) as fleet:
        one, two = fleet.engines.values()
        await asyncio.gather(*(post(one, chat_body(stream=n % 2 == 0)) for n in range(10)))
        await get(one, "/v1/models")
        await get(one, "/health")
        told = json.loads((await get(two, "/admin/truth"))[1])["engines"]
        assert list(told) == ["sim-1", "sim-2"]
        assert told["sim-1"]["by_path"] == {CHAT: 10, "/v1/models": 1}
        assert (told["sim-1"]["open"], told["sim-1"]["total"], told["sim-1"]["finished"]) == (0, 11, 11)
        assert told["sim-2"]["total"] == 0
        await one.fault("error_500")
        assert (await post(two, {}, "/admin/reset"))[0] == 200
        assert list(json.loads((await get(two, "/admin/truth?engine=sim-1"))[1])["engines"]) == ["sim-1"]
        assert one.truth.total == 0
        assert (await post(one, chat_body()))[0] == 200


async def test_error_statuses_come_as_often_as_ordered() -> None:
    async with engine() as server:
        await post(server, {"fault": "error_500", "status": 502, "times": 2}, "/admin/fault")
        assert [(await post(server, chat_body()))[0] for _ in range(3)] == [502, 502, 200]
        await server.fault("queue_full_503", times=1)
        assert [(await post(server, chat_body(stream=True)))[0] for _ in range(2)] == [503, 200]


async def test_a_stream_can_begin_with_an_error_event() -> None:
    async with engine() as server:
        await server.fault("sse_error")
        status, raw = await post(server, chat_body(stream=True))
        assert status == 200
        assert raw.startswith(b'data: {"error":{')
        assert raw.endswith(b'"code":503}}\n\ndata: [DONE]\n\n')
        assert (await post(server, chat_body()))[0] == 503


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "ending"),
    [
        ("reset_before_headers", "reset"),
        ("reset_mid_stream", "reset"),
        ("close_mid_stream", "eof"),
        ("hang", "silence"),
        ("hang_mid_stream", "silence"),
    ],
)
async def test_connections_break_as_ordered(fault: str, ending: str, stream: bool) -> None:
    async with engine() as server:
        await server.fault(fault, chunks=3)
        async with Raw(server, chat_body(stream=stream)) as raw:
            assert await raw.end(0.3 if ending == "silence" else 5) == ending
            if "mid_stream" not in fault:
                assert raw.seen == b""
            elif stream:
                assert raw.seen.count(b'"content":"') == 1 + 3  # the role's, and three tokens
                assert b"\r\n0\r\n\r\n" not in raw.seen
            else:
                assert raw.seen.startswith(b"HTTP/1.1 200")
        await until(lambda: server.truth.open == 0)
        assert server.engine.running == 0
        assert (server.truth.cut, server.truth.aborted) == ((0, 1) if ending == "silence" else (1, 0))


async def test_a_slow_drip_spreads_the_tokens() -> None:
    loop = asyncio.get_running_loop()
    async with engine() as server:
        await server.fault("slow_drip", interval_s=0.05)
        for stream in (True, False):
            start = loop.time()
            assert (await post(server, chat_body(stream=stream, max_tokens=6)))[0] == 200
            assert loop.time() - start > 0.2


async def test_a_refusing_engine_refuses_ends_idle_connections_and_comes_back_on_its_port() -> None:
    async with SimFleet.of([0, 0], replace(INSTANT, ttft_base_s=0.3)) as fleet:
        one, two = fleet.engines.values()
        port = one.port
        async with aiohttp.ClientSession() as session, Raw(one, chat_body(stream=True)) as at_work:
            async with session.get(one.url + "/health") as response:
                await response.read()
            await until(lambda: one.engine.running == 1)
            assert (await post(two, {"engine": "sim-1", "fault": "refuse"}, "/admin/fault"))[0] == 200
            with pytest.raises(aiohttp.ClientError):
                await session.get(one.url + "/health")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await at_work.until(b"[DONE]")
        await post(two, {"engine": "sim-1", "fault": "none"}, "/admin/fault")
        assert one.port == port
        assert (await get(one, "/health"))[0] == 200


async def test_refusing_can_cut_the_requests_at_work_and_end_by_itself() -> None:
    async with engine(INSTANT, ttft_base_s=1.0) as server:
        async with Raw(server, chat_body(stream=True)) as raw:
            await raw.until(b"\r\n\r\n")
            await server.fault("refuse", cut=True, seconds=0.5)
            assert await raw.end() == "reset"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        await until(lambda: server.faults.current.fault == "none")
        await until(lambda: server.truth.open == 0)
        assert (await post(server, chat_body()))[0] == 200


async def test_a_frozen_engine_looks_idle_and_healthy_and_goes_on_when_thawed() -> None:
    async with engine() as server:
        await server.fault("freeze")
        async with Raw(server, chat_body(stream=True)) as raw:
            await raw.until(b"\r\n\r\n")
            assert await raw.end(0.3) == "silence"
            assert b"data:" not in raw.seen
            assert server.engine.running == 1
            page = (await get(server, "/metrics"))[1].decode()
            assert 'vllm:num_requests_running{engine="0",model_name="sim-model"} 0.0' in page
            assert (await get(server, "/health"))[0] == 200
            await server.fault("none")
            await raw.until(b"[DONE]")


async def test_the_pages_break_apart_from_the_requests() -> None:
    async with engine() as server:
        await server.fault(metrics="500")
        assert (await get(server, "/metrics"))[0] == 500
        await server.fault(metrics="garbage", health="500")
        assert (await get(server, "/metrics"))[0] == 200
        assert (await get(server, "/health"))[0] == 500
        await server.fault(metrics="hang", health="none")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get(server, "/metrics"), 0.2)
        assert (await get(server, "/health"))[0] == 200
        assert (await post(server, chat_body()))[0] == 200


async def test_wrong_orders_are_refused_with_the_key() -> None:
    async with engine() as server:
        for order, key in (({"fault": "nonsense"}, b"fault"), ({"chunk": 2}, b"chunk"), ([], b"object")):
            status, raw = await post(server, order, "/admin/fault")
            assert status == 400
            assert key in raw
        assert (await post(server, {"engine": "sim-9"}, "/admin/fault"))[0] == 404
        with pytest.raises(ValidationError, match="seconds"):
            await server.fault("freeze", times=1)


async def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        SimConfig(max_num_seqs=0)
    with pytest.raises(ValueError, match="two engines"):
        SimFleet([SimConfig(), SimConfig()])
    for text in ("", "x", "70000", "1,1"):
        with pytest.raises(ValueError, match="port"):
            parse_ports(text)


async def test_a_taken_port_is_an_error_that_leaves_nothing_listening() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fleet = SimFleet.of([0, taken.getsockname()[1]], INSTANT)
        with pytest.raises(OSError, match="in use"):
            await fleet.start()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", fleet.engines["sim-1"].port)


async def test_the_addon_serves_its_ports_and_frees_them_for_the_next_generation() -> None:
    ports = [free_port(), free_port()]
    first, second = SimEngines(), SimEngines()
    with taddons.context(first) as context:
        with pytest.raises(exceptions.OptionsError, match="not a port"):
            context.configure(first, sim_engines_ports="nonsense")
        context.configure(first, sim_engines_ports=f"{ports[0]}")
        await first.running()
        # A live reload: `done` of the old one is not awaited before the new one runs.
        ended = first.done()
        second.configure({"sim_engines_ports"})
        await second.running()
        await ended
        assert _accepts(ports[0])
        context.options.update(sim_engines_ports=f"{ports[1]}")
        second.configure({"sim_engines_ports"})
        await until(lambda: _accepts(ports[1]) and not _accepts(ports[0]))
        await second.done()
        assert not _accepts(ports[1])


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_the_program_tells_when_it_is_ready_and_ends_on_sigterm() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "addons.sim_engines", "--count", "2", "--base-port", "0", "--model", "tiny"),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 15))
        assert list(ready["engines"]) == ["sim-1", "sim-2"]
        url = ready["engines"]["sim-2"]
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
            await api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
            with pytest.raises(OpenAIError):
                await api.chat.completions.create(model="x", messages=[{"role": "user", "content": "x"}])
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
