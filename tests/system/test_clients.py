"""What clients do before, while and after they ask: what reaches the engine of it, and what is held."""

import asyncio
import ssl
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import requests

from tests.addon import engine as scripts
from tests.addon.engine import ScriptedEngine
from tests.fault_proxy import FaultProxy
from tests.redis.servers import counts_in, redis_server
from tests.system.balancer import Balancer, Engines
from tests.system.clients import PATH, QUICK, Seen, and_nothing_is_left, ask, request, served, settings
from tests.waiting import eventually


async def test_a_client_that_leaves_while_redis_is_asked_leaves_nothing_and_reaches_no_engine(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server())
        way = await stack.enter_async_context(FaultProxy(("127.0.0.1", redis.port)))
        visits = 0

        async def visited(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal visits
            visits += 1
            writer.close()

        engine = await stack.enter_async_context(await asyncio.start_server(visited, "127.0.0.1", 0))
        url = f"http://127.0.0.1:{engine.sockets[0].getsockname()[1]}"
        config = settings([{"name": "e", "url": url}], pages=False)
        config["lb_config"] = {"serviceFQDN": "127.0.0.1", "servicePort": way.port}
        balancer = await stack.enter_async_context(served(Balancer(tmp_path, config)))
        way.latency_s = 0.1  # less than after which a server counts as slow

        def all_left() -> bool:
            return balancer.metric("ai_lb_requests_total", ending="client_left") == 5

        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
            writer.write(request())
            await writer.drain()
            writer.close()
        await eventually(all_left, within_s=10, what="all were placed and finished")
        await eventually(lambda: counts_in(redis.client, "engines") == {}, within_s=5, what="all is back")
        assert visits == 0
        await asyncio.to_thread(and_nothing_is_left, balancer)


async def test_an_engine_sees_within_200_ms_that_its_client_left_before_an_answer(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine(scripts.hang))
        config = settings([engine.endpoint], pages=False)
        its = await stack.enter_async_context(served(Balancer(tmp_path, config)))
        took = []
        for number in range(9):
            _, writer = await asyncio.open_connection("127.0.0.1", its.port)
            writer.write(request())
            async with asyncio.timeout(10):
                while len(engine.heads) <= number:
                    await asyncio.sleep(0.005)
            began = time.monotonic()
            writer.close()
            async with asyncio.timeout(10):
                while engine.open:
                    await asyncio.sleep(0.002)
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.2, took
        await asyncio.to_thread(and_nothing_is_left, its)


class Http2First(ssl.SSLContext):
    """Prefers HTTP/2, as most clients do but httpx."""

    def set_alpn_protocols(self, alpn_protocols: object) -> None:
        super().set_alpn_protocols(["h2", "http/1.1"])


async def test_a_client_that_offers_http2_speaks_http1_and_is_not_held_up(tmp_path: Path) -> None:
    slow = ("--ttft", "1", "--tpot", "0.001", "--max-num-seqs", "64")
    with Engines(2, *slow) as engines, Balancer(tmp_path, settings(engines.endpoints())) as balancer:
        url = f"https://127.0.0.1:{balancer.port}{PATH.decode()}"
        body = {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        tls = Http2First(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        began = time.monotonic()
        async with httpx.AsyncClient(http2=True, verify=tls, timeout=60) as client:
            answers = await asyncio.gather(*(client.post(url, json=body) for _ in range(20)))
        assert {(answer.status_code, answer.http_version) for answer in answers} == {(200, "HTTP/1.1")}
        assert time.monotonic() - began < 20 / 2, "they are answered side by side"
        and_nothing_is_left(balancer)


HEAD = b"POST " + PATH + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


async def test_a_client_that_expects_100_gets_it_and_then_the_answer(tmp_path: Path) -> None:
    body = request().partition(b"\r\n\r\n")[2]
    with Engines(1, *QUICK) as engines, Balancer(tmp_path, settings(engines.endpoints())) as balancer:
        reader, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
        writer.write(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            writer.write(body)
            seen = Seen(0, 0, await reader.read())
        writer.close()
        assert seen.outcome == "ok"
        assert engines.truth()["sim-1"]["total"] == 1
        and_nothing_is_left(balancer)


async def test_a_request_in_chunks_is_served_and_one_with_trailers_holds_nothing(tmp_path: Path) -> None:
    body = request(stream=False).partition(b"\r\n\r\n")[2]
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    for at in range(0, len(body), 7):
        chunked += scripts.chunk(body[at : at + 7])
    with Engines(1, *QUICK) as engines, Balancer(tmp_path, settings(engines.endpoints())) as balancer:
        seen = await ask(balancer.port, chunked + b"0\r\n\r\n")
        assert seen.outcome == "ok"
        assert b"one two three" in seen.body
        _, writer = await asyncio.open_connection("127.0.0.1", balancer.port)
        writer.write(chunked + b"0\r\nx-trailer: 1\r\n\r\n")
        await eventually(lambda: "trailers" in balancer.log(), within_s=10, what="mitmproxy says no")
        assert await asyncio.to_thread(balancer.in_flight) == 0
        writer.close()
        assert (await ask(balancer.port, request())).outcome == "ok"
        assert engines.truth()["sim-1"]["total"] == 2


async def test_the_metrics_of_the_balancer_are_read_only_and_not_reached_through_it(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(ScriptedEngine(scripts.answer))
        its = await stack.enter_async_context(
            served(Balancer(tmp_path, settings([engine.endpoint], pages=False)))
        )
        there = f"127.0.0.1:{its.metrics_port}"
        for target in (
            "/metrics",
            f"http://{there}/metrics",
            f"//{there}/metrics",
            "/admin",
            "/commands",
        ):
            asked = f"GET {target} HTTP/1.1\r\nhost: {there}\r\nconnection: close\r\n\r\n"
            seen = await ask(its.port, asked.encode())
            assert seen.body == b"{}", "it is the engine that answers"
        assert len(engine.heads) == 5
        for method in ("POST", "PUT", "DELETE"):
            answer = await asyncio.to_thread(requests.request, method, f"http://{there}/metrics", timeout=5)
            assert answer.status_code >= 400
