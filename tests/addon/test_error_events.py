"""Error events that come in place of content, judged alike on the first attempt and on the last."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from lb_core.health.verdict import Kind, judge
from lb_core.types import Outcome
from tests.addon.engine import SSE_END, SSE_HEAD, ScriptedEngine, chunk
from tests.addon.failover_rig import status
from tests.addon.proxy import Proxy
from tests.addon.test_endings import Rig
from tests.addon.test_failover import raw
from tests.addon.test_verdicts import rig

BUSY, FAILURE, SUCCESS = Kind.BUSY, Kind.FAILURE, Kind.SUCCESS
ERRORS: dict[str, tuple[bytes, Kind]] = {
    "Anthropic, overloaded": (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', BUSY),
    "Anthropic, too many": (b'{"type":"error","error":{"type":"rate_limit_error","message":"m"}}', BUSY),
    "Anthropic, fault": (b'{"type":"error","error":{"type":"api_error","message":"m"}}', FAILURE),
    "vLLM, fault": (b'{"error":{"message":"m","type":"InternalServerError"}}', FAILURE),
    "vLLM, other fault": (b'{"error":{"message":"m","type":"internal_error","code":null}}', FAILURE),
    "vLLM, full": (b'{"error":{"message":"m","type":"Service Unavailable","code":503}}', BUSY),
    "TGI, full": (b'{"error":"m","error_type":"overloaded"}', BUSY),
    "TGI, wrong request": (b'{"error":"m","error_type":"validation"}', SUCCESS),
    "a word without a meaning": (b'{"error":{"message":"m","type":"oops"}}', FAILURE),
    "wrong request": (b'{"error":{"message":"m","type":"invalid_request_error"}}', SUCCESS),
}


def verdict(outcome: Outcome) -> Kind:
    return judge(outcome, unix_time=0.0, connected=outcome.connected, error_code=outcome.error_code).kind


@pytest.mark.parametrize("hold", [True, False], ids=["held", "not held"])
@pytest.mark.parametrize("error", ERRORS)
async def test_an_error_event_counts_the_same_on_each_attempt(tmp_path: Path, error: str, hold: bool) -> None:
    event, kind = ERRORS[error]
    script = raw(SSE_HEAD + chunk(b"data: %s\n\n" % event) + SSE_END)
    async with ScriptedEngine(script) as first, ScriptedEngine(script) as second:
        endpoints = [{**first.endpoint, "name": "a"}, {**second.endpoint, "name": "b"}]
        config: dict[str, Any] = {
            "clusters": {"c": {"endpoints": endpoints}},
            "retry": {"hold_streams": hold},
        }
        async with Proxy(tmp_path, config) as proxy:
            its = Rig(proxy, first)
            failed: list[Outcome] = []
            balancer = proxy.addon._runtime.balancer  # type: ignore[union-attr]
            retry = balancer.retry

            async def spied_retry(placement: Any, outcome: Outcome, **more: Any) -> Any:
                failed.append(outcome)
                return await retry(placement, outcome, **more)

            balancer.retry = spied_retry  # type: ignore[method-assign]
            answer = await its.ask()
            if hold and kind is BUSY:  # no other endpoint is left to ask
                assert status(answer) == 503
                assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "endpoint_busy"
            else:
                assert event in answer
            assert [verdict(outcome) for outcome in (*failed, *its.outcomes)] == [kind] * (
                2 if hold and kind is not SUCCESS else 1
            )


@pytest.mark.parametrize("error", [name for name, (_, kind) in ERRORS.items() if kind is not SUCCESS])
async def test_an_error_event_counts_the_same_though_its_stream_is_cut(tmp_path: Path, error: str) -> None:
    event, kind = ERRORS[error]
    head = SSE_HEAD.replace(b"\r\n", b"\r\nretry-after: 7\r\n", 1)
    script = raw(head + chunk(b"data: %s\n\n" % event), then="close")
    async with rig(tmp_path, script, script) as its:
        assert (await its.ask()).status_code == (503 if kind is BUSY else 502)
        assert [verdict(outcome) for outcome in (*its.failed, *its.ended)] == [kind, kind]
        assert [outcome.retry_after for outcome in (*its.failed, *its.ended)] == ["7", "7"]
