"""Requests are led by the model that they name, whatever their path, through the proxy."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.addon import engine as engines
from tests.addon.engine import ScriptedEngine
from tests.addon.proxy import Proxy
from tests.addon.test_ai_lb import send

JSON = "content-type: application/json"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/rerank",
        "/v1/audio/speech",
        "/tokenize",
        "/v1/%63ompletions",
    ],
)
async def test_routes_and_endpoints_go_by_the_model_on_every_path(tmp_path: Path, path: str) -> None:
    async with AsyncExitStack() as stack:
        first, second, third = [
            await stack.enter_async_context(ScriptedEngine(engines.answer)) for _ in range(3)
        ]
        settings = {
            "clusters": {
                "one": {"endpoints": [{**first.endpoint, "name": "a"}]},
                "two": {
                    "endpoints": [
                        {**second.endpoint, "name": "b", "models": ["m-b"]},
                        {**third.endpoint, "name": "c", "models": ["m-c"]},
                    ]
                },
            },
            "routes": [
                {"name": "ones", "match": {"models": ["one-*"]}, "cluster": "one"},
                {"name": "twos", "match": {"models": ["m-*"]}, "cluster": "two"},
            ],
            "expose_decision": True,
        }
        proxy = await stack.enter_async_context(Proxy(tmp_path, settings))
        for _ in range(3):
            for model, endpoint in (("one-x", b"a"), ("m-b", b"b"), ("m-c", b"c")):
                head, _ = await send(proxy, b'{"model": "%s"}' % model.encode(), JSON, path=path)
                assert b"x-ai-lb-endpoint: " + endpoint in head, head
        head, _ = await send(proxy, b'{"model": "m-d"}', JSON, path=path)
        assert b" 404 " in head
        head, _ = await send(proxy, b"{}", JSON, path=path)
        assert b" 404 " in head, "no route takes a request without a model here"
        assert first.heads[0].startswith(f"POST {path} HTTP/1.1".encode()), "the path goes on as it came"


async def test_a_path_is_matched_by_what_it_means(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        settings = {
            "clusters": {"c": {"endpoints": [engine.endpoint]}},
            "routes": [{"name": "r", "match": {"paths": ["/v1/chat/*"]}, "cluster": "c"}],
        }
        async with Proxy(tmp_path, settings) as proxy:
            for path, status in (
                ("/v1/%63hat/completion%73", b" 200 "),
                ("/v1%2Fchat/completions", b" 404 "),
            ):
                head, _ = await send(proxy, b"{}", path=path)
                assert status in head
        assert engine.heads[0].startswith(b"POST /v1/%63hat/completion%73 HTTP/1.1")
