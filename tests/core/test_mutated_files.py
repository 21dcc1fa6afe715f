"""Configuration files with random damage: each is refused as a whole, or taken as a whole."""

import random
from collections import Counter

import pytest

from lb_core.config import loads
from lb_core.errors import ConfigError, RouteError
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome

# No engine is asked for anything, because a damaged address may be anybody's.
GOOD = """\
listen: {host: 127.0.0.1, port: 8080}
metrics_listen: 127.0.0.1:9464
expose_decision: true
drain_timeout: 30
hosts:
  engine.test: 127.0.0.3
clusters:
  llama:
    balance: least_request
    endpoints:
      - http://127.0.0.1:9101
      - {url: "http://engine.test:9102", name: gpu-2, weight: 2, max_in_flight: 64, models: ["llama-*"]}
    health: {ejection_s: 10, max_ejected: 0.5, silent_s: null, checks: false}
    metrics: false
  qwen:
    endpoints: [http://127.0.0.1:9103]
    metrics: false
routes:
  - name: services
    match: {hosts: ["*.test"], paths: [/v1/*], models: "qwen-*"}
    lb_type: cluster
    lb_policy: cluster_metrics
    lb_config: {mode: LeastBusy, service_list: [llama, qwen], rate_limit: 0.6}
  - match: {paths: /v2/*}
    cluster: qwen
    lb_policy: prefix_cache
    lb_config:
      redisKeyTTL: 60
      enableDetailLog: false
    retry: {attempts: 1, on_statuses: [429, 503]}
    timeouts: {ttft_timeout: off, stream_idle: 60}
  - cluster: llama
lb_type: endpoint
lb_policy: global_least_request
lb_config: {maxRequestCount: 8}
"""
DAMAGE = "{}[]:- \n\t#&*!'\"x0.,|<\x00é"


def damaged(text: str, dice: random.Random) -> str:
    """One or two accidents: a digit, a character, a line or a stretch is changed, lost, doubled or moved."""
    for _ in range(dice.randrange(1, 3)):
        lines = text.splitlines(keepends=True) or [""]
        one, other = dice.randrange(len(lines)), dice.randrange(len(lines))
        at = dice.randrange(len(text) + 1)
        match dice.randrange(9):
            case 0 | 1:
                text = text[:at] + dice.choice(DAMAGE) + text[at + 1 :]
            case 2:
                text = text[:at] + dice.choice(DAMAGE) + text[at:]
            case 3:
                text = text[:at] + text[at + dice.randrange(1, 20) :]
            case 4:
                text = "".join(lines[:one] + lines[one + 1 :])
            case 5:
                text = "".join([*lines[:one], lines[other], *lines[one:]])
            case 6:
                lines[one], lines[other] = lines[other], lines[one]
                text = "".join(lines)
            case 7 | 8:
                at = dice.choice([at for at, character in enumerate(text) if character.isdigit()])
                text = text[:at] + dice.choice("0123456789") + text[at + 1 :]
    return text


def state(runtime: Runtime) -> list[object]:
    """All that a file decides, to be compared by identity."""
    endpoints = [endpoint for cluster in runtime.clusters.values() for endpoint in cluster.endpoints]
    return [
        runtime.config,
        *runtime.settings.values(),
        *runtime.clusters.values(),
        *endpoints,
        *runtime.balancer.routes,
        runtime.balancer.default_policy,
    ]


async def serves(runtime: Runtime) -> bool:
    """Whether a request gets a place; the damage may have left it none."""
    request = runtime.balancer.request(host="a.test", path="/v1/x", headers={}, session=None, llm=None)
    try:
        placement = await runtime.balancer.route(request, started=0.0)
    except RouteError:
        return False
    runtime.balancer.finish(placement, Outcome(Ending.COMPLETE, 200, duration_s=0.1, connected=True))
    return True


async def reload_mutated(count: int) -> Counter[str]:
    dice = random.Random(5)
    good = loads(GOOD.replace("metrics_listen", "# "))
    runtime = await Runtime(good).start()
    seen: Counter[str] = Counter()
    try:
        for number in range(count):
            text = damaged(GOOD, dice)
            before = state(runtime)
            try:
                loaded = loads(text)
                runtime.apply(loaded)
            except ConfigError:
                seen["bad"] += 1
                after = state(runtime)
                assert len(after) == len(before), text
                assert all(now is then for now, then in zip(after, before, strict=True)), text
            else:
                seen["good"] += 1
                assert runtime.config is loaded
                seen["served"] += await serves(runtime)
            if number % 50 == 0:
                runtime.apply(good)
                assert await serves(runtime), "the file from before is good again"
    finally:
        await runtime.close()
    print(f"\n{count} mutated files: {dict(seen)}")
    return seen


async def test_a_mutated_file_is_refused_and_changes_nothing_or_is_taken() -> None:
    seen = await reload_mutated(1_500)
    assert seen["bad"] > 1_000
    assert seen["served"] > 50, "some are good"


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_each_of_10000_mutated_files_is_refused_and_changes_nothing_or_is_taken() -> None:
    seen = await reload_mutated(10_000)
    assert seen["bad"] + seen["good"] == 10_000
