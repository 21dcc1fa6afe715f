"""What the balancer is told of each attempt: what it means for the endpoint, and what is tried again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from mitmproxy import http

from addons.failover.hooks import FailoverHooks
from lb_core.types import Endpoint, Outcome, Placement
from tests.addon import engine as engines
from tests.addon.engine import SSE_END, SSE_HEAD, Script, ScriptedEngine, chunk
from tests.addon.failover_rig import rst
from tests.addon.proxy import Proxy
from tests.waiting import free_port, until

type Reader = asyncio.StreamReader
type Writer = asyncio.StreamWriter

BODY = {"model": "m", "stream": True, "messages": []}
ERROR_EVENT = b'data: {"error":{"message":"busy","type":"Service Unavailable","code":503}}\n\n'


def raw(data: bytes) -> Script:
    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(data)

    return script


async def reset(reader: Reader, writer: Writer) -> None:
    rst(writer)


busy = raw(b"HTTP/1.1 503 X\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n")
full = raw(SSE_HEAD + chunk(ERROR_EVENT) + b"0\r\n\r\n")


class Rig:
    """A proxy whose balancer writes down what it is told."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.failed: list[Outcome] = []
        self.ended: list[Outcome] = []
        self.told: list[str] = []
        runtime = proxy.addon._runtime
        assert runtime is not None
        self.runtime = runtime
        balancer = runtime.balancer
        retry, finish = balancer.retry, balancer.finish
        connected, content = balancer.connected, balancer.content

        async def spied_retry(
            placement: Placement, outcome: Outcome, *, or_same: bool = False
        ) -> Placement | None:
            self.failed.append(outcome)
            return await retry(placement, outcome, or_same=or_same)

        def spied_finish(placement: Placement, outcome: Outcome) -> None:
            self.ended.append(outcome)
            finish(placement, outcome)

        def spied_connected(placement: Placement) -> None:
            self.told.append("connected")
            connected(placement)

        def spied_content(placement: Placement) -> None:
            self.told.append("content")
            content(placement)

        balancer.retry = spied_retry  # type: ignore[method-assign]
        balancer.finish = spied_finish  # type: ignore[method-assign]
        balancer.connected = spied_connected  # type: ignore[method-assign]
        balancer.content = spied_content  # type: ignore[method-assign]

    async def ask(self) -> httpx.Response:
        async with httpx.AsyncClient(timeout=10) as client:
            answer = await client.post(self.proxy.url + "/v1/chat/completions", json=BODY)
        await until(lambda: self.ended and self.proxy.is_clean(), "it has ended")
        return answer


@asynccontextmanager
async def rig(folder: Path, *scripts: Script | int, **more: Any) -> AsyncIterator[Rig]:
    """Engines that are asked in this order, a port for one that refuses."""
    async with AsyncExitStack() as stack:
        ports = [
            script
            if isinstance(script, int)
            else (await stack.enter_async_context(ScriptedEngine(script))).port
            for script in scripts
        ]
        urls = [
            {"name": f"e{number}", "url": f"http://127.0.0.1:{port}"} for number, port in enumerate(ports)
        ]
        config = {"clusters": {"c": {"endpoints": urls, "balance": "round_robin"}}, **more}
        yield Rig(await stack.enter_async_context(Proxy(folder, config)))


async def test_a_refused_connection_is_told_as_such(tmp_path: Path) -> None:
    async with rig(tmp_path, free_port(), engines.answer) as its:
        assert (await its.ask()).status_code == 200
        assert [outcome.connected for outcome in its.failed] == [False]


async def test_an_error_event_is_told_with_its_code(tmp_path: Path) -> None:
    async with rig(tmp_path, full, engines.stream) as its:
        assert (await its.ask()).status_code == 200
        assert [(outcome.status, outcome.error_code) for outcome in its.failed] == [(200, 503)]


async def test_a_busy_endpoint_is_told_with_its_retry_after(tmp_path: Path) -> None:
    async with rig(tmp_path, busy, busy) as its:
        assert (await its.ask()).status_code == 503
        assert [outcome.retry_after for outcome in (*its.failed, *its.ended)] == ["7", "7"]


async def test_a_replayed_request_is_told_with_its_retry_after(tmp_path: Path) -> None:
    """mitmproxy sends it through a layer of its own, in which nothing is held and nobody is asked."""

    class Keeper:
        def response(self, flow: http.HTTPFlow) -> None:
            self.flow = flow

    keeper = Keeper()
    async with ScriptedEngine(busy) as engine:
        config = {"clusters": {"c": {"endpoints": [engine.endpoint]}}}
        async with Proxy(tmp_path, config, keeper) as proxy:
            its = Rig(proxy)
            await its.ask()
            proxy.master.commands.call("replay.client", [keeper.flow.copy()])
            await until(lambda: len(its.ended) == 2, "the replay has ended")
            assert its.ended[1].retry_after == "7"


async def test_a_first_byte_that_is_too_late_is_no_failure_of_the_endpoint(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang, engines.answer, timeouts={"ttft_timeout": 0.2}) as its:
        assert (await its.ask()).status_code == 504
        assert not its.failed
        assert [outcome.ending.value for outcome in its.ended] == ["timed_out"]


async def test_what_was_sent_is_sent_again_once(tmp_path: Path) -> None:
    async with rig(tmp_path, reset, reset, engines.answer) as its:
        assert (await its.ask()).status_code == 502
        assert len(its.failed) == 1


@pytest.mark.parametrize("status", [408, 503, 529])
async def test_each_status_that_the_route_lists_is_tried_elsewhere(tmp_path: Path, status: int) -> None:
    script = raw(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % status)
    async with rig(tmp_path, script, engines.answer, retry={"on_statuses": [408, 503, 529]}) as its:
        assert (await its.ask()).status_code == 200
        assert [outcome.status for outcome in its.failed] == [status]


@pytest.mark.parametrize(
    ("scripts", "status", "attempts"),
    [
        ([engines.answer], 200, None),
        ([reset, engines.answer], 200, "2"),
        ([busy], 503, None),
        ([busy, busy], 503, "2"),
        ([reset, reset, engines.answer], 502, "2"),
        ([None, None, busy], 503, "3"),
        ([None, None], 503, "2"),
    ],
)
async def test_the_client_is_told_how_many_endpoints_were_asked(
    tmp_path: Path, scripts: list[Script | None], status: int, attempts: str | None
) -> None:
    asked = [script or free_port() for script in scripts]
    async with rig(tmp_path, *asked, expose_decision=True) as its:
        answer = await its.ask()
        assert (answer.status_code, answer.headers.get("x-ai-lb-attempts")) == (status, attempts)


async def test_what_is_not_tried_elsewhere_is_not_held(tmp_path: Path) -> None:
    async def unlisted(reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"a"))
        await reader.read()

    async with rig(tmp_path, unlisted, engines.answer) as its:
        reader, writer = await asyncio.open_connection("127.0.0.1", its.proxy.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await reader.readuntil(chunk(b"a"))).startswith(b"HTTP/1.1 500 ")
        assert not its.failed
        (exchange,) = its.proxy.addon._exchanges.values()
        assert "attempts" not in exchange.record
        writer.close()


async def test_a_connection_and_the_first_content_are_told(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.stream) as its:
        await its.ask()
        assert its.told == ["connected", "content"]


async def test_the_head_of_an_answer_that_is_no_stream_is_told(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.answer) as its:
        await its.ask()
        assert its.told == ["connected", "content"]


async def test_each_request_adds_to_the_budget_of_retries(tmp_path: Path) -> None:
    retry = {"budget_percent": 100, "budget_per_s": 0}
    async with rig(tmp_path, reset, engines.answer, retry=retry) as its:
        assert (await its.ask()).status_code == 200, "one request allows one retry"
        assert len(its.failed) == 1


async def test_a_stream_that_is_silent_is_cut_and_charged_to_the_endpoint(tmp_path: Path) -> None:
    async with rig(tmp_path, engines.hang_mid_stream, timeouts={"stream_idle": 0.2}) as its:
        with pytest.raises(httpx.RemoteProtocolError):
            await its.ask()
        await until(lambda: its.ended, "it has ended")
        assert [outcome.ending.value for outcome in its.ended] == ["upstream_failed"]


async def test_a_first_byte_in_time_is_all_that_its_time_out_asks(tmp_path: Path) -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD)
        for _ in range(4):
            writer.write(chunk())
            await writer.drain()
            await asyncio.sleep(0.15)
        writer.write(SSE_END)

    async with rig(tmp_path, slow, timeouts={"ttft_timeout": 0.3}) as its:
        assert (await its.ask()).status_code == 200
        assert [outcome.ending.value for outcome in its.ended] == ["complete"]


async def test_no_timer_runs_after_the_end(tmp_path: Path) -> None:
    timeouts = {"ttft_timeout": 60, "stream_idle": 60}
    async with rig(tmp_path, engines.hang_mid_stream, timeouts=timeouts) as its:
        reader, writer = await asyncio.open_connection("127.0.0.1", its.proxy.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"\n\n")
        (exchange,) = its.proxy.addon._exchanges.values()
        assert exchange._watch is not None
        assert not exchange._watch._timer.cancelled()
        writer.close()
        await until(lambda: its.ended, "it has ended")
        assert exchange._watch._timer.cancelled()


async def test_an_event_that_only_the_end_completes_is_read(tmp_path: Path) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    async with rig(tmp_path, raw(SSE_HEAD + chunk() + chunk(usage) + SSE_END)) as its:
        await its.ask()
        assert its.ended[0].usage.completion_tokens == 2


async def test_the_silent_streams_of_an_endpoint_that_refuses_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.failover.hooks._SILENT_S", 0.1)
    async with ScriptedEngine(engines.hang_mid_stream) as engine:
        config = {"clusters": {"c": {"endpoints": [engine.endpoint]}}}
        async with Proxy(tmp_path, config) as proxy:
            its = Rig(proxy)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"\n\n")
            engine._server.close()
            async with httpx.AsyncClient(timeout=10) as client:
                assert (await client.get(proxy.url)).status_code == 503
            async with asyncio.timeout(5):
                assert not (await reader.read()).endswith(SSE_END)
            writer.close()
            await until(lambda: len(its.ended) == 2, "both have ended")


async def test_the_silent_streams_of_another_endpoint_of_the_same_name_are_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Files with endpoints of two clusters may have one name for two.
    monkeypatch.setattr("addons.failover.hooks._SILENT_S", 0)
    ended: list[str] = []
    monkeypatch.setattr("addons.failover.hooks.cut", ended.append)
    refuses, other = (Endpoint("a", "http", "127.0.0.1", free_port()) for _ in range(2))
    exchanges: Any = {
        number: SimpleNamespace(flow=number, events=1, placement=SimpleNamespace(endpoint=endpoint))
        for number, endpoint in (("1", refuses), ("2", other))
    }
    hooks = FailoverHooks(exchanges, {})
    hooks._watch_silent(refuses)
    await until(lambda: not hooks._watched, "it was looked at")
    assert ended == ["1"]


async def test_the_silent_streams_of_an_endpoint_that_is_reached_again_are_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.failover.hooks._SILENT_S", 0.5)
    went_on = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD + chunk())
        await went_on.wait()
        writer.write(SSE_END)

    async with ScriptedEngine(script) as engine:
        config = {"clusters": {"c": {"endpoints": [engine.endpoint]}}}
        async with Proxy(tmp_path, config) as proxy, httpx.AsyncClient(timeout=10) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"\n\n")
            engine._server.close()
            assert (await client.get(proxy.url)).status_code == 503
            assert [each.name for each in proxy.addon.failover._watched] == ["scripted"]
            engine._server = await asyncio.start_server(engine._serve, "127.0.0.1", engine.port)
            await until(lambda: not proxy.addon.failover._watched, "it was looked at")
            await until(lambda: engine.open == 1, "only the stream is open there")
            went_on.set()
            async with asyncio.timeout(10):
                await reader.readuntil(SSE_END)
            writer.close()


async def test_a_stream_whose_endpoint_refuses_before_its_first_event_is_served_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("addons.failover.hooks._SILENT_S", 0.1)

    async def queued(reader: Reader, writer: Writer) -> None:
        writer.write(SSE_HEAD)
        await reader.read()

    async with ScriptedEngine(queued) as ends, ScriptedEngine(engines.stream) as other:
        endpoints = [{**ends.endpoint, "name": "ends"}, {**other.endpoint, "name": "other"}]
        config = {"clusters": {"c": {"endpoints": endpoints, "balance": "round_robin"}}}
        async with Proxy(tmp_path, config) as proxy, httpx.AsyncClient(timeout=10) as client:
            waits = asyncio.create_task(client.post(proxy.url + "/v1/chat/completions", json=BODY))
            await until(lambda: any(each.events == 0 for each in proxy.addon._exchanges.values()), "it waits")
            ends._server.close()
            for _ in range(2):
                assert (await client.post(proxy.url + "/v1/chat/completions", json=BODY)).status_code == 200
            answer = await waits
            assert (answer.status_code, "data: " in answer.text) == (200, True)


async def answers_once(reader: Reader, writer: Writer) -> None:
    """Then the connection is closed, just when the next request comes: what an idle time-out looks like."""
    writer.write(engines.OK)
    await writer.drain()
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def ask_in_turn(its: Rig, times: int) -> list[int]:
    """Statuses of requests over one connection."""
    async with httpx.AsyncClient(timeout=10) as client:
        return [
            (await client.post(its.proxy.url + "/v1/chat/completions", json=BODY)).status_code
            for _ in range(times)
        ]


async def test_a_connection_closed_for_being_idle_is_no_failure_of_its_endpoint(tmp_path: Path) -> None:
    async with rig(tmp_path, answers_once, answers_once, retry={"enabled": False}) as its:
        assert await ask_in_turn(its, 3) == [200, 200, 502]
        await until(lambda: len(its.ended) == 3, "all have ended")
        assert [outcome.ending.value for outcome in its.ended] == ["complete", "complete", "abandoned"]


async def test_a_connection_closed_for_being_idle_is_opened_anew_at_the_only_endpoint(tmp_path: Path) -> None:
    async with rig(tmp_path, answers_once) as its:
        assert await ask_in_turn(its, 4) == [200] * 4
        await until(its.proxy.is_clean, "nothing is in flight")
        assert [outcome.error for outcome in its.failed] == ["stale"] * 3


async def test_the_next_endpoint_is_not_asked_over_a_connection_that_was_idle_as_long(tmp_path: Path) -> None:
    async with rig(tmp_path, answers_once, answers_once) as its:
        assert await ask_in_turn(its, 3) == [200] * 3
        assert [outcome.error for outcome in its.failed] == ["stale"]
