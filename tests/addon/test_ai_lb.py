"""What the addon does to requests and responses, and how it takes options."""

import asyncio
import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy import contentviews, exceptions, http
from mitmproxy.io import FlowReader, FlowWriter

from lb_core import config as configuration
from tests.addon import engine as engines
from tests.addon.engine import ScriptedEngine
from tests.addon.proxy import Gate, Proxy
from tests.core.site import PAGE, Site, private_tls, response, says
from tests.waiting import until

CHAT = {"model": "m", "messages": [{"role": "user", "content": "secret words"}]}


async def send(
    proxy: Proxy, body: bytes, *head: str, path: str = "/v1/chat/completions"
) -> tuple[bytes, bytes]:
    """POST a body on a connection of its own; gives the response's head and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    lines = [
        f"POST {path} HTTP/1.1",
        "host: api.test:99",
        "connection: close",
        f"content-length: {len(body)}",
        *head,
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    async with asyncio.timeout(20):
        got = await reader.read()
    writer.close()
    first, _, rest = got.partition(b"\r\n\r\n")
    return first, rest


def one_cluster(engine: ScriptedEngine, **more: Any) -> dict[str, Any]:
    return {"clusters": {"c": {"endpoints": [engine.endpoint]}}, **more}


class Keeper:
    """Keeps the flows that ended."""

    def __init__(self) -> None:
        self.flows: list[http.HTTPFlow] = []

    def response(self, flow: http.HTTPFlow) -> None:
        self.flows.append(flow)


async def test_the_request_reaches_its_endpoint_with_its_own_host_and_unchanged_body(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        body = b'{ "model" :"m", "messages":[] , "x":1e400}'
        await send(proxy, body)
        assert engine.bodies == [body]
        assert f"host: 127.0.0.1:{engine.port}\r\n".encode() in engine.heads[0].lower()
        assert engine.heads[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


async def test_an_absolute_request_line_is_sent_on_as_a_path(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        await send(proxy, b"", path="http://elsewhere.test/v1/models")
        assert engine.heads[0].startswith(b"POST /v1/models HTTP/1.1\r\n")


async def test_nobody_but_the_balancer_speaks_in_its_headers(tmp_path: Path) -> None:
    async def spoof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX-AI-LB-Reason: spoofed\r\ncontent-length: 2\r\n\r\n{}")

    async with ScriptedEngine(spoof) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        head, _ = await send(proxy, b"{}", "X-Ai-Lb-Endpoint: mine", "x-ai-lb-anything: 1")
        assert b"x-ai-lb" not in engine.heads[0].lower()
        assert b"x-ai-lb" not in head.lower()


async def test_the_decision_is_exposed_only_when_asked_for(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        async with Proxy(tmp_path, one_cluster(engine, expose_decision=True)) as proxy:
            head, _ = await send(proxy, b"{}")
            assert b"x-ai-lb-endpoint: scripted" in head
            assert b"x-ai-lb-policy: round_robin" in head
            assert b"x-ai-lb-reason: turn" in head
            assert str(engine.port).encode() not in head
        async with Proxy(tmp_path, one_cluster(engine)) as proxy:
            head, _ = await send(proxy, b"{}")
            assert b"x-ai-lb" not in head


async def test_the_record_of_what_no_route_takes_says_what_routes_match(tmp_path: Path) -> None:
    keeper = Keeper()
    async with ScriptedEngine(engines.answer) as engine:
        config = one_cluster(engine, routes=[{"cluster": "c", "match": {"models": ["other"]}}])
        async with Proxy(tmp_path, config, keeper) as proxy:
            async with httpx.AsyncClient() as client:
                url = proxy.url + "/v1/chat/completions?key=secret"
                assert (await client.post(url, json=CHAT, headers={"host": "api.test"})).status_code == 404
            await until(lambda: keeper.flows, "the flow ended")
    record = keeper.flows[0].metadata["ai_lb"]
    assert (record["reason"], record["outcome"]["status"]) == ("no_route", 404)
    assert (record["model"], record["host"], record["path"]) == ("m", "api.test", "/v1/chat/completions")


async def test_the_record_is_plain_and_survives_saving(tmp_path: Path) -> None:
    keeper = Keeper()
    async with ScriptedEngine(engines.stream) as engine:
        config = one_cluster(engine, lb_policy="global_least_request", lb_config={})
        async with Proxy(tmp_path, config, keeper) as proxy:
            await send(proxy, json.dumps(CHAT).encode())
            await until(lambda: keeper.flows, "the flow ended")
    saved = tmp_path / "saved.mitm"
    with saved.open("wb") as file:
        FlowWriter(file).add(keeper.flows[0])
    with saved.open("rb") as file:
        (flow,) = FlowReader(file).stream()
    record = flow.metadata["ai_lb"]
    assert record["route"] == "default"
    assert record["policy"] == "global_least_request"
    assert record["endpoint"] == "scripted"
    assert record["reason"] == "least_request"
    assert record["model"] == "m"
    assert record["host"] == "api.test"
    assert [row["endpoint"] for row in record["candidates"]] == ["scripted"]
    assert record["candidates"][0]["in_flight"] == 0
    assert record["outcome"]["ending"] == "complete"
    assert record["outcome"]["status"] == 200
    assert 0 < record["outcome"]["ttft_s"] <= record["outcome"]["duration_s"]
    assert "secret words" not in repr(record)
    assert flow.comment.startswith("scripted (global_least_request: least_request), complete 200, ttft ")


async def test_streams_and_long_or_endless_bodies_are_not_kept_and_short_ones_are(tmp_path: Path) -> None:
    bodies = {
        "sse": (b"content-type: text/event-stream\r\n", b"data: {}\n\n"),
        "long": (b"content-length: 2000000\r\n", b"x" * 2_000_000),
        "endless": (b"", b"x" * 100),
        "short": (b"content-length: 100\r\n", b"x" * 100),
    }
    for name, (header, body) in bodies.items():
        keeper = Keeper()

        async def script(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes = header + b"\r\n" + body
        ) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\n" + sent)
            await writer.drain()
            writer.close()

        async with (
            ScriptedEngine(script) as engine,
            Proxy(tmp_path, one_cluster(engine), keeper) as proxy,
        ):
            _, got = await send(proxy, b"{}")
            assert got == body
            await until(lambda keeper=keeper: keeper.flows, "the flow ended")
            response = keeper.flows[0].response
            assert response is not None
            assert (response.raw_content is None) == (name != "short"), name


async def test_usage_is_read_from_answers_that_are_not_streamed(tmp_path: Path) -> None:
    payload = (
        b'{"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}'
    )

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(payload), payload))

    keeper = Keeper()
    async with ScriptedEngine(script) as engine, Proxy(tmp_path, one_cluster(engine), keeper) as proxy:
        await send(proxy, json.dumps(CHAT).encode())
        await until(lambda: keeper.flows, "the flow ended")
    outcome = keeper.flows[0].metadata["ai_lb"]["outcome"]
    assert (outcome["prompt_tokens"], outcome["completion_tokens"], outcome["cached_tokens"]) == (7, 3, 4)


async def test_a_gzip_bomb_is_sent_on_unread(tmp_path: Path) -> None:
    bomb = gzip.compress(b" " * 200_000_000)
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        head, _ = await send(proxy, bomb, "content-encoding: gzip")
        assert b" 200 " in head
        assert engine.bodies == [bomb]


async def test_no_body_is_changed_on_its_way(tmp_path: Path) -> None:
    """The body reaches the endpoint byte for byte, whatever it is; parsing alone is fuzzed in tests/core."""
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        odd = [
            b"",
            b"\xff\xfe{\x00}\x00",
            b'{"model":"\\ud800"}',
            b"[" * 100_000,
            b'{"n":' + b"9" * 5000 + b"}",
            b'{"messages":7,"model":{"a":[]},"stream":"yes"}',
            b"\xef\xbb\xbf{}",
            *(bytes([byte]) * 300 for byte in range(0, 256, 17)),
        ]
        for body in odd:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
            )
            writer.write(body)
            async with asyncio.timeout(10):
                assert await reader.readuntil(b"{}")
        writer.close()
        assert engine.bodies == odd
        await until(proxy.is_clean, "nothing is in flight")


async def test_the_policy_changes_while_requests_are_in_flight(tmp_path: Path) -> None:
    keeper = Keeper()
    async with ScriptedEngine(engines.answer) as engine:
        config = one_cluster(engine, lb_policy="global_least_request", lb_config={})
        config["clusters"]["c"]["balance"] = "random"
        async with Proxy(tmp_path, config, keeper) as proxy:
            for number, (option, expected) in enumerate(
                [
                    ("", "global_least_request"),
                    ("off", "random"),
                    ("round_robin", "round_robin"),
                    ("", "global_least_request"),
                ]
            ):
                proxy.master.options.update(ai_lb_policy=option)
                await send(proxy, b"{}")
                await until(lambda wanted=number + 1: len(keeper.flows) == wanted, "the flow ended")
                assert keeper.flows[-1].metadata["ai_lb"]["policy"] == expected


async def test_a_request_in_flight_finishes_under_the_policy_that_placed_it(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.hang_mid_stream) as engine:
        config = one_cluster(engine, lb_policy="global_least_request", lb_config={})
        async with Proxy(tmp_path, config) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"GET /v1/anything HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"\n\n")
            proxy.master.options.update(ai_lb_policy="off")
            assert proxy.in_flight() == 1
            (exchange,) = proxy.addon._exchanges.values()
            assert exchange.placement.decision.policy == "global_least_request"
            writer.close()
            await until(proxy.is_clean, "nothing is in flight")


async def test_a_route_that_a_reload_renames_serves_what_it_had_matched(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        routes = [{"name": "old", "cluster": "c"}]
        async with Proxy(tmp_path, one_cluster(engine, routes=routes)) as proxy:
            gate = Gate(proxy)
            answer = asyncio.create_task(send(proxy, b"{}"))
            await until(lambda: gate.waiting, "it waits for its slot")
            renamed = proxy._path.read_text().replace("name: old", "name: new")
            proxy.addon._runtime.apply(configuration.loads(renamed))  # type: ignore[union-attr]
            gate.opened.set()
            assert (await answer)[0].startswith(b"HTTP/1.1 200 ")
            await until(proxy.is_clean, "nothing is in flight")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (
            "ai_lb_policy",
            "global_least_reqest",
            "^option ai_lb_policy: .*global_least_request.* 'off' .* empty",
        ),
        ("stream_large_bodies", "1m", "stream_large_bodies"),
        ("connection_strategy", "eager", "lazy"),
        ("mode", ["regular"], "open proxy"),
        ("mode", ["reverse:http://example.com"], "unbalanced"),
        ("ai_lb_config", "other.yaml", "start"),
    ],
)
async def test_a_wrong_option_is_refused_while_running_and_changes_nothing(
    tmp_path: Path, option: str, value: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        before = getattr(proxy.master.options, option)
        with caplog.at_level("INFO"), pytest.raises(exceptions.OptionsError, match=words) as caught:
            proxy.master.options.update(**{option: value})
        assert "\n" not in str(caught.value)
        assert "policy is now" not in caplog.text
        assert getattr(proxy.master.options, option) == before
        # mitmproxy opens a listener of the refused mode for a moment; whom it accepts is turned away.
        heads: list[bytes] = []
        while not heads or (heads[-1] == b"" and len(heads) < 100):
            with contextlib.suppress(OSError):
                heads.append((await send(proxy, b"{}"))[0])
        assert b" 200 " in heads[-1]
        assert all(head == b"" for head in heads[:-1])


async def test_options_that_the_user_did_not_set_are_set_for_a_balancer(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        async with Proxy(tmp_path, one_cluster(engine), http2="true", tcp_timeout="77") as proxy:
            options = proxy.master.options
            assert options.connection_strategy == "lazy"
            assert options.onboarding is False
            assert options.keep_host_header is True
            assert options.body_size_limit == "64m"
            assert options.http2 is True  # asked for
            assert options.tcp_timeout == 77
        async with Proxy(tmp_path, one_cluster(engine)) as proxy:
            assert proxy.master.options.http2 is False
            assert proxy.master.options.tcp_timeout == 3600


async def test_the_command_lists_what_is_in_flight(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.hang) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        assert proxy.master.commands.call("ai_lb.in_flight") == ["c/scripted: 0"]
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await until(
            lambda: proxy.master.commands.call("ai_lb.in_flight") == ["c/scripted: 1"], "it is counted"
        )
        writer.close()
        await until(proxy.is_clean, "nothing is in flight")


async def test_a_live_reload_of_the_script_gives_everything_back(tmp_path: Path) -> None:
    async with (
        ScriptedEngine(engines.hang_mid_stream) as engine,
        Proxy(tmp_path, one_cluster(engine)) as proxy,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        await reader.readuntil(b"\n\n")
        old = proxy.addon
        assert old._runtime is not None
        store = old._runtime.clusters["c"].store
        assert store.in_flight == {"scripted": 1}
        proxy.master.addons.get("scriptloader").addons[0].loadscript()
        await until(lambda: store.in_flight == {}, "the old one gave everything back")
        assert proxy.addon is not old
        assert proxy.addon._runtime is not None
        writer.close()
        await until(lambda: engine.open == 0, "the stream ended")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=st.text(alphabet=st.characters(codec="latin-1", categories=["L", "N", "P"]), max_size=200))
def test_a_long_or_odd_content_length_is_never_taken_for_short(value: str) -> None:
    from addons.exchange import _is_short

    assert not _is_short(value) or int(value) <= 1 << 20


async def test_the_decision_is_a_content_view(tmp_path: Path) -> None:
    keeper = Keeper()
    async with (
        ScriptedEngine(engines.answer) as engine,
        Proxy(tmp_path, one_cluster(engine), keeper) as proxy,
    ):
        await send(proxy, json.dumps(CHAT).encode())
        await until(lambda: keeper.flows, "the flow ended")
        flow = keeper.flows[0]
        shown = contentviews.prettify_message(flow.request, flow, "AI routing")
        assert "endpoint: scripted" in shown.text
        assert "secret words" not in shown.text
        assert contentviews.prettify_message(flow.request, flow).view_name != "AI routing"


async def test_endpoints_are_drained_and_undrained_by_command(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as first, ScriptedEngine(engines.answer) as second:
        config = {
            "clusters": {
                "c": {"endpoints": [{**first.endpoint, "name": "a"}, {**second.endpoint, "name": "b"}]}
            },
            "expose_decision": True,
        }
        async with Proxy(tmp_path, config) as proxy:
            call = proxy.master.commands.call
            call("ai_lb.drain", "a")
            for _ in range(4):
                head, _ = await send(proxy, b"{}")
                assert b"x-ai-lb-endpoint: b" in head
            call("ai_lb.undrain", "a")
            call("ai_lb.drain", "b")
            head, _ = await send(proxy, b"{}")
            assert b"x-ai-lb-endpoint: a" in head
            call("ai_lb.undrain", "c/b")  # as ai_lb.in_flight prints it
            call("ai_lb.drain", "c/a")
            head, _ = await send(proxy, b"{}")
            assert b"x-ai-lb-endpoint: b" in head
            with pytest.raises(
                exceptions.CommandError, match="there is no endpoint nobody; there are: c/a, c/b"
            ):
                call("ai_lb.drain", "nobody")
            with pytest.raises(exceptions.CommandError, match="no endpoint d/b; did you mean 'c/b'"):
                call("ai_lb.drain", "d/b")


async def test_the_file_is_read_again_by_command_though_it_did_not_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        with caplog.at_level("INFO"):
            await until(lambda: "cluster c has" in caplog.text, "it has started")
            proxy.master.commands.call("ai_lb.reload")
            await until(lambda: "the configuration was reloaded" in caplog.text, "it is read again")


async def test_checks_and_pages_trust_whom_requests_trust(tmp_path: Path) -> None:
    authority = tmp_path / "private-ca-cert.pem"
    async with Site(says(response(PAGE)), tls=private_tls(tmp_path)) as site:
        endpoint = {"name": "e0", "url": f"https://127.0.0.1:{site.port}"}
        cluster = {"endpoints": [endpoint], "metrics": {}, "health": {"checks": {"interval_s": 0.1}}}
        settings = {"ssl_verify_upstream_trusted_ca": str(authority)}
        async with Proxy(tmp_path, {"clusters": {"c": cluster}}, **settings) as proxy:
            assert proxy.addon._runtime is not None
            alive = proxy.addon._runtime.clusters["c"]
            await until(lambda: alive.board.observations(["e0"]), "the page is read")
            assert alive.health.states()["e0"] == "healthy"
            assert (await send(proxy, b"{}"))[0].startswith(b"HTTP/1.1 200")
            proxy.master.options.update(ssl_verify_upstream_trusted_ca=None)
            await until(lambda: alive.health.states()["e0"] == "unhealthy", "nobody vouches for it")
            with pytest.raises(exceptions.OptionsError, match="the certificates to trust cannot be loaded"):
                proxy.master.options.update(ssl_verify_upstream_trusted_ca=str(tmp_path / "none.pem"))
            proxy.master.options.update(ssl_insecure=True)
            await until(lambda: alive.health.states()["e0"] == "healthy", "anybody will do")


async def test_another_address_is_warned_of_and_the_one_in_use_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine)) as proxy:
        text = proxy._path.read_text()
        with caplog.at_level("INFO"):
            await until(lambda: "cluster c has" in caplog.text, "it has started")
            for content in (text.replace(str(proxy.port), "1234"), text):
                caplog.clear()
                proxy._path.write_text(content)
                proxy.master.commands.call("ai_lb.reload")
                await until(lambda: "the configuration was reloaded" in caplog.text, "it is read again")
                assert ("take effect at the next start" in caplog.text) is (content != text)


@pytest.mark.parametrize(
    ("detail", "verbosity", "lines"), [(True, "debug", 1), (False, "debug", 0), (True, "info", 0)]
)
async def test_decisions_are_told_in_the_debug_log_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, detail: bool, verbosity: str, lines: int
) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        config = one_cluster(engine, lb_policy="global_least_request", lb_config={"enableDetailLog": detail})
        async with Proxy(tmp_path, config, termlog_verbosity=verbosity) as proxy:
            proxy.addon._verbose = verbosity == "debug"  # without a terminal mitmproxy has no such option
            with caplog.at_level("DEBUG"):
                await send(proxy, b"{}")
            told = [entry for entry in caplog.messages if entry.startswith("ai-lb: scripted (")]
            assert len(told) == lines


async def test_mitmproxys_own_addons_stay_exactly_if_they_have_something_to_do(tmp_path: Path) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        async with Proxy(tmp_path, one_cluster(engine), modify_headers="/~q/x-added/yes") as proxy:
            addons = proxy.master.addons
            await until(lambda: not addons.get("modifybody"), "idle addons are gone")
            assert addons.get("modifyheaders")
            head, _ = await send(proxy, b"{}")
            assert b" 200 " in head
            assert b"x-added: yes" in engine.heads[-1]
        async with Proxy(tmp_path, one_cluster(engine)) as proxy:
            await until(lambda: not proxy.master.addons.get("modifyheaders"), "idle addons are gone")
            assert proxy.master.addons.get("save")


async def test_an_address_in_two_clusters_is_warned_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with ScriptedEngine(engines.answer) as engine:
        again = {**engine.endpoint, "name": "again"}
        clusters = {"c": {"endpoints": [engine.endpoint]}, "d": {"endpoints": [again]}}
        async with Proxy(tmp_path, {"clusters": clusters, "routes": [{"cluster": "c"}]}):
            await until(lambda: "'again' of cluster 'd' has the address of" in caplog.text, "it is told")
    assert caplog.text.count("has the address of") == 1
