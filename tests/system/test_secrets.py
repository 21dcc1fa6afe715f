"""Keys, queries, prompts and passwords: none of them is ever written down anywhere."""

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from tests.redis.servers import RedisServer, redis_server
from tests.system.balancer import Balancer, Engines
from tests.waiting import free_port

KEY = "canary-key-4711"
QUERY = "canary-query-4711"
PROMPT = "canary-prompt-4711"
PASSWORD = "canary-password-4711"
SECRETS = (KEY, QUERY, PROMPT, PASSWORD)

MITMPROXYS_OWN = re.compile(
    r"127\.0\.0\.1:\d+: [A-Z]+ \S+"
    r"| << .*"
    r"|\[[\d:.]+\]\[127\.0\.0\.1:\d+\] Client closed connection before completing request headers"
    r"|\[[\d:.]+\]\[127\.0\.0\.1:\d+\] (\S+: )?(Bad HTTP request|Invalid header)"
)
"""What mitmproxy prints without `-q`: URLs, errors (flow_detail 1), and heads that it cannot read."""

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/x",
)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server(password=PASSWORD) as server:
        yield server


def config(engines: Engines, redis_port: int) -> dict[str, Any]:
    shared = {"serviceFQDN": "127.0.0.1", "servicePort": redis_port, "password": PASSWORD, "timeout": 300}
    dead = [{"name": "dead", "url": f"http://127.0.0.1:{free_port()}"}]
    full = [{"name": "full", "url": f"http://127.0.0.1:{engines.ports[0]}", "max_in_flight": 1}]
    return {
        "clusters": {
            "engines": {"endpoints": engines.endpoints()},
            "dead": {"endpoints": dead},
            "none": {"endpoints": []},
            "full": {"endpoints": full},
            "choosy": {"endpoints": [{"name": "choosy", "url": dead[0]["url"], "models": ["llama-*"]}]},
        },
        "routes": [
            {"name": name, "match": {"models": [name]}, "cluster": name}
            for name in ("dead", "none", "full", "choosy")
        ]
        + [{"name": "engines", "match": {"models": ["sim"]}, "cluster": "engines"}],
        "lb_policy": "prefix_cache",
        "lb_config": shared,
        "timeouts": {"stream_idle": 1, "ttft_timeout": 0.5},
        "expose_decision": True,
    }


def body(path: str, model: str, *, stream: bool = False, tokens: int = 5) -> dict[str, Any]:
    long = f"{PROMPT} {'and so on ' * 200}"
    asked: dict[str, Any] = {"model": model, "max_tokens": tokens, "stream": stream, "user": PROMPT}
    match path:
        case "/v1/completions":
            return asked | {"prompt": long}
        case "/v1/responses" | "/v1/embeddings":
            return asked | {"input": long}
        case _:
            return asked | {"messages": [{"role": "user", "content": long}]}


class Errors:
    """Asks in ways that fail; `said` is what came back that is not from an engine that is well."""

    def __init__(self, balancer: Balancer) -> None:
        self.said: list[str] = []
        self._client = httpx.Client(
            base_url=balancer.url,
            timeout=20,
            headers={"authorization": f"Bearer {KEY}", "x-api-key": KEY, "cookie": f"session={KEY}"},
            params={"api-key": QUERY},
        )

    def __enter__(self) -> "Errors":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, path: str, model: str, **more: Any) -> int:
        answer = self._client.post(path, json=body(path, model, **more))
        if answer.status_code != 200:
            self.said.append(answer.text)
        self.said.append(str(answer.headers))
        return answer.status_code


async def raw(port: int, data: bytes, *, leave_after_s: float | None = None) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    got = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(leave_after_s or 1):
            got = await reader.read()
    writer.close()
    return got.decode("latin-1")


def everything_in(redis: RedisServer) -> bytes:
    """All names and values; the commands that Redis writes down by itself too."""
    client = redis.client
    found = [json.dumps(client.execute_command("SLOWLOG", "GET", "1000"), default=str).encode()]
    for key in client.scan_iter("*"):
        found.append(key.encode())
        kind = client.type(key)
        if kind == "hash":
            found.append(json.dumps(client.hgetall(key)).encode())
        elif kind == "zset":
            found.append(json.dumps(client.zrange(key, 0, -1)).encode())
        elif kind == "set":
            found.append(json.dumps(sorted(client.smembers(key))).encode())
        elif kind == "list":
            found.append(json.dumps(client.lrange(key, 0, -1)).encode())
        elif kind == "string":
            found.append(str(client.get(key)).encode())
        else:
            raise AssertionError(f"a kind of key that is not looked into: {kind}")
    return b"\n".join(found)


def fail_in_many_ways(balancer: Balancer, engines: Engines) -> list[str]:
    """All kinds of errors with secrets in the requests; gives what clients were told."""
    key = f"authorization: Bearer {KEY}\r\n"
    head = f"POST /v1/chat/completions?api-key={QUERY} HTTP/1.1\r\nhost: x\r\n{key}"
    payload = json.dumps(body(PATHS[0], "sim", stream=True))
    length = f"content-length: {len(payload)}\r\n\r\n"
    broken = [
        head + "content-length: 100000\r\n\r\n" + payload,  # leaves before it is complete
        head[:-10],  # leaves within the headers
        head + "transfer-encoding: xchunked\r\n\r\n" + payload,
        head + f"content-length: {KEY}\r\n\r\n" + payload,
        head + f"transfer-encoding: chunked\r\n\r\n{PROMPT}\r\n",
        head + f"x-y: a\0{KEY}\r\n" + length + payload,
        head.replace("HTTP/1.1", f"{KEY} HTTP/1.1") + length + payload,
        f"GET http://{KEY}@127.0.0.2:1/{QUERY} HTTP/1.1\r\nhost: {KEY}\r\n\r\n",
        f"CONNECT {QUERY}:1 HTTP/1.1\r\n{key}\r\n",
        head + length + payload[:-1] + "\xff",
        head + "content-encoding: gzip\r\n" + length + payload,
        head + "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: x\r\n" + length + payload,
    ]
    said = []
    with Errors(balancer) as errors:
        for path in PATHS:
            for model in ("sim", "dead", "none", "choosy", f"unknown-{KEY}"):
                errors.ask(path, model)
        for fault in ("error_500", "queue_full_503", "sse_error", "reset_before_headers", "hang"):
            for name in engines.names:
                engines.fault(name, fault)
            for path in PATHS[:3]:
                errors.ask(path, "sim", stream=fault != "error_500")
        for name in engines.names:
            engines.fault(name, "hang_mid_stream", chunks=1)
        with contextlib.suppress(httpx.RemoteProtocolError):
            errors.ask(PATHS[0], "sim", stream=True)
        for name in engines.names:
            engines.fault(name, "none")
        said += errors.said

    async def all_broken() -> list[str]:
        answers = await asyncio.gather(*(raw(balancer.port, each.encode("latin-1")) for each in broken))
        leavers = (raw(balancer.port, broken[0].encode(), leave_after_s=0.01) for _ in range(5))
        return [*answers, *(await asyncio.gather(*leavers))]

    return said + asyncio.run(all_broken())


def hits(text: str) -> list[str]:
    """The lines with a secret in them."""
    return [line for line in text.splitlines() if any(secret in line for secret in SECRETS)]


def in_all_places(folder: Path, redis: RedisServer, *arguments: str) -> dict[str, list[str]]:
    """Let requests with secrets fail, Redis die and come back; gives where secrets were found."""
    with ExitStack() as stack:
        engines = stack.enter_context(Engines(2, "--ttft", "0.005", "--tpot", "0.001"))
        balancer = stack.enter_context(Balancer(folder, config(engines, redis.port), *arguments))
        said = fail_in_many_ways(balancer, engines)
        kept = everything_in(redis)
        assert b"engines" in kept  # it is used
        redis.kill()
        with Errors(balancer) as errors:
            assert errors.ask(PATHS[0], "sim") == 200
            said += errors.said
        redis.start()
        page = requests.get(f"http://127.0.0.1:{balancer.metrics_port}/metrics", timeout=5).text
        assert "ai_lb_requests_total" in page
        assert len(said) > 60
        assert balancer.stop(signal.SIGINT) == 0
        log = balancer.log()
    return {
        "log": hits(log),
        "metrics": hits(page),
        "redis": hits(kept.decode("utf-8", "replace")),
        "errors": hits("\n".join(said)),
    }


@pytest.mark.parametrize("verbosity", ["info", "debug"])
def test_mitmproxy_alone_prints_requests_and_nothing_else_is_found_anywhere(
    tmp_path: Path, redis: RedisServer, verbosity: str
) -> None:
    found = in_all_places(tmp_path, redis, "--set", f"termlog_verbosity={verbosity}")
    found["log"] = [line for line in found["log"] if not MITMPROXYS_OWN.match(line)]
    assert found == {"log": [], "metrics": [], "redis": [], "errors": []}


def test_no_secret_is_found_anywhere_when_mitmproxy_is_quiet(tmp_path: Path, redis: RedisServer) -> None:
    found = in_all_places(tmp_path, redis, "-q")
    assert found == {"log": [], "metrics": [], "redis": [], "errors": []}
