"""What a reload keeps, what it changes, and that it changes nothing where it fails."""

import asyncio
from pathlib import Path

import pytest

from lb_core.config import Config, loads
from lb_core.errors import ConfigError
from lb_core.policies.prefix_cache import PrefixCache
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome, Placement
from tests.waiting import until

ENDPOINTS = """
clusters:
  a: {endpoints: [{url: "http://127.0.0.1:1", name: a1}], metrics: false}
  b: {endpoints: [{url: "http://127.0.0.1:2", name: b1}], metrics: false}
"""
SERVICES = """
lb_type: cluster
lb_policy: cluster_metrics
lb_config: {mode: LeastBusy, service_list: [a, b]}
"""
ROUTES = "routes: [{name: r, cluster: a}]\n"


@pytest.mark.parametrize("option", ["off", "round_robin"])
async def test_a_file_that_the_option_ai_lb_policy_forbids_changes_nothing(option: str) -> None:
    runtime = Runtime(loads(ENDPOINTS + ROUTES))
    runtime.use_policy(option)
    before = runtime.config, runtime.clusters, runtime.balancer.routes, runtime.balancer.default_policy
    with pytest.raises(ConfigError, match="the default policy chooses clusters"):
        runtime.apply(loads(ENDPOINTS + SERVICES))
    after = runtime.config, runtime.clusters, runtime.balancer.routes, runtime.balancer.default_policy
    assert all(now is then for now, then in zip(after, before, strict=True))
    runtime.use_policy("")
    runtime.apply(loads(ENDPOINTS + SERVICES))
    await runtime.close()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs cannot be read: No such file or directory"),
        ("ssl_ca_certs={empty}", "ssl_ca_certs holds no certificate"),
    ],
)
async def test_a_ca_file_that_cannot_be_used_is_an_error_of_the_configuration(
    tmp_path: Path, options: str, why: str
) -> None:
    empty = tmp_path / "ca.pem"
    empty.touch()
    options = options.format(empty=empty)
    loaded = loads(
        f"{ENDPOINTS}{ROUTES}lb_policy: global_least_request\n"
        f'lb_config: {{redis: "rediss://u:hunter2@redis.test?{options}"}}\n',
        "ai_lb.yaml",
    )
    with pytest.raises(ConfigError) as caught:
        Runtime(loaded)
    assert caught.value.lines() == [f"ai_lb.yaml: redis: {why}"]
    runtime = Runtime(loads(ENDPOINTS + ROUTES))
    before = runtime.clusters
    with pytest.raises(ConfigError):
        runtime.apply(loaded)
    assert runtime.clusters is before


async def answered(runtime: Runtime) -> Placement:
    """Place a request, which is answered well."""
    request = runtime.balancer.request(host="a.test", path="/", headers={}, session=None, llm=None)
    placement = await runtime.balancer.route(request, started=0.0)
    runtime.balancer.finish(placement, Outcome(Ending.COMPLETE, 200, duration_s=0.1, connected=True))
    return placement


async def test_a_retry_after_a_reload_goes_to_the_address_that_is_configured_now() -> None:
    members = "clusters: {c: {metrics: false, endpoints: %s}}"
    a, b, c = ({"url": f"http://127.0.0.1:{port}", "name": name} for port, name in enumerate("abc", 1))
    runtime = Runtime(loads(members % [a, b, c]))
    asked = runtime.balancer.request(host="a.test", path="/", headers={}, session=None, llm=None)
    placement = await runtime.balancer.route(asked, started=0.0)
    assert placement.endpoint.name == "a"
    runtime.apply(loads(members % [a, {**b, "url": "http://127.0.0.1:22"}]))
    moved = await runtime.balancer.retry(placement, Outcome(Ending.UPSTREAM_FAILED, connected=False))
    assert moved is not None
    assert (moved.endpoint.name, moved.endpoint.port) == ("b", 22)
    assert await runtime.balancer.retry(moved, Outcome(Ending.UPSTREAM_FAILED, connected=False)) is None
    await runtime.close()


async def test_a_retry_after_all_endpoints_were_replaced_goes_to_a_new_one() -> None:
    members = "clusters: {c: {metrics: false, endpoints: %s}}"
    old, new, newer = ({"url": f"http://127.0.0.1:{port}", "name": f"e{port}"} for port in (1, 2, 3))
    runtime = Runtime(loads(members % [old]))
    asked = runtime.balancer.request(host="a.test", path="/", headers={}, session=None, llm=None)
    placement: Placement | None = await runtime.balancer.route(asked, started=0.0)
    for endpoints, name in (([new], "e2"), ([new, newer], "e3")):
        runtime.apply(loads(members % endpoints))
        assert placement is not None
        placement = await runtime.balancer.retry(placement, Outcome(Ending.UPSTREAM_FAILED, connected=False))
        assert placement is not None
        tier = placement.decision.tiers[placement.lease.tier]
        assert (placement.endpoint.name, tier.reason) == (name, "joined")
    assert placement is not None
    assert await runtime.balancer.retry(placement, Outcome(Ending.UPSTREAM_FAILED, connected=False)) is None
    await runtime.close()


async def test_services_keep_their_samples_over_a_reload_that_changes_something_else() -> None:
    latency = SERVICES.replace("LeastBusy", "LeastTotalLatency")
    runtime = Runtime(loads(ENDPOINTS + latency))
    await answered(runtime)
    await answered(runtime)
    runtime.apply(loads(ENDPOINTS + latency + "expose_decision: true\n"))
    placement = await answered(runtime)
    assert placement.services is not None
    assert {choice.reason for choice in placement.services.choices} == {"least_total_latency"}
    runtime.apply(loads(ENDPOINTS + latency.replace("[a, b]", "[b, a]")))
    placement = await answered(runtime)
    assert placement.services is not None
    assert placement.services.choices[0].reason == "probe"
    await runtime.close()


async def test_a_route_keeps_its_latest_choices_as_long_as_it_leads_to_the_same_cluster() -> None:
    runtime = Runtime(loads(ENDPOINTS + ROUTES))
    await answered(runtime)
    runtime.apply(loads(ENDPOINTS + "routes: [{name: q, cluster: b}, {name: r, cluster: a}]\n"))
    assert [route.recent.counts for route in runtime.balancer.routes] == [{}, {"a1": 1}]
    runtime.apply(loads(ENDPOINTS + "routes: [{name: r, cluster: b}]\n"))
    assert [route.recent.counts for route in runtime.balancer.routes] == [{}]
    await runtime.close()


def with_redis(port: int, more: str = "") -> str:
    policy = f"lb_policy: prefix_cache\nlb_config: {{redis: 'redis://127.0.0.1:{port}', cleanInterval: 60}}\n"
    return ENDPOINTS + ROUTES + policy + more


async def test_a_clean_interval_changes_nothing_and_replaces_no_store() -> None:
    runtime = Runtime(loads(with_redis(1)))
    before = runtime.clusters["a"]
    runtime.apply(loads(with_redis(1).replace("cleanInterval: 60", "cleanInterval: 5")))
    assert runtime.clusters["a"] is before
    runtime.apply(loads(with_redis(2)))
    assert runtime.clusters["a"] is not before
    await asyncio.sleep(0.01)
    await runtime.close()


async def test_a_link_to_a_redis_that_is_not_used_any_more_is_closed() -> None:
    runtime = await Runtime(loads(with_redis(1))).start()
    links = runtime._assembly.links
    (old,) = links.all()
    runtime.apply(loads(with_redis(2)))
    assert len(links.all()) == 2, "what the old cluster has in flight is given back over it"
    async with asyncio.timeout(5):
        while len(links.all()) > 1:
            await asyncio.sleep(0.05)
    assert old not in links.all()
    await runtime.close()


async def test_two_time_outs_for_one_redis_are_one_connection_with_the_shorter() -> None:
    def config(a_ms: int, b_ms: int) -> Config:
        policy = "lb_policy: global_least_request, lb_config: {redis: 'redis://127.0.0.1:1', timeout: %d}"
        a = f"{{name: a, match: {{hosts: [a.test]}}, cluster: a, {policy % a_ms}}}"
        return loads(f"{ENDPOINTS}routes: [{a}, {{name: b, cluster: b, {policy % b_ms}}}]")

    runtime = Runtime(config(100, 40))
    (link,) = runtime._assembly.links.all()
    assert link.timeout_ms == 40
    runtime.apply(config(100, 200))
    assert runtime._assembly.links.all() == (link,)
    assert link.timeout_ms == 100
    with pytest.raises(ConfigError):
        runtime.apply(
            loads(with_redis(1).replace("redis://", "rediss://").replace(":1'", ":1?ssl_ca_certs=/nowhere'"))
        )
    assert link.timeout_ms == 100
    await runtime.close()


async def test_prompts_remembered_for_a_policy_that_is_gone_are_forgotten() -> None:
    def config(ttl_s: int) -> Config:
        return loads(f"{ENDPOINTS}{ROUTES}lb_policy: prefix_cache\nlb_config: {{redisKeyTTL: {ttl_s}}}\n")

    runtime = Runtime(config(60))
    await answered(runtime)
    cluster = runtime.clusters["a"]
    finder = cluster.finder(PrefixCache(60))
    runtime.use_policy("off")
    runtime.apply(config(60))
    assert cluster.finder(PrefixCache(60)) is finder, "it is configured, if not used"
    runtime.apply(config(70))
    assert runtime.clusters["a"] is cluster
    assert cluster.finder(PrefixCache(60)) is not finder
    await runtime.close()


async def test_an_answer_on_its_way_to_a_cluster_that_left_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[asyncio.Future[tuple[str, ...]]] = []

    async def resolve(host: str) -> tuple[str, ...]:
        asked.append(asyncio.get_running_loop().create_future())
        return await asked[-1]

    monkeypatch.setattr("lb_core.assembly.resolve", resolve)
    named = '  d: {endpoints: ["dns+http://engines.test:80"], metrics: false}\n'
    for turns in range(5):
        asked.clear()
        runtime = Runtime(loads(ENDPOINTS + named + ROUTES))
        starting = asyncio.create_task(runtime.start())
        await until(lambda: asked)
        asked[0].set_result(("10.0.0.1",))
        for _ in range(turns):
            await asyncio.sleep(0)
        runtime.apply(loads(ENDPOINTS + ROUTES))
        await starting
        await asyncio.sleep(0)
        await runtime.close()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_an_endpoint_drains_while_its_file_says_so_and_by_hand_until_it_is_taken_back() -> None:
    def cluster(*draining: str) -> Config:
        listed = [f'{{url: "http://127.0.0.1:{port}", name: a{port}' for port in (1, 2)]
        listed = [text + (", draining: true}" if text[-2:] in draining else "}") for text in listed]
        return loads(f"clusters: {{a: {{endpoints: [{', '.join(listed)}], metrics: false}}}}\n")

    def served() -> set[str]:
        return set(runtime.clusters["a"].health.eligible({}).available)

    runtime = Runtime(cluster("a1"))
    assert served() == {"a2"}
    runtime.apply(cluster())
    assert served() == {"a1", "a2"}
    runtime.apply(cluster("a2"))
    assert served() == {"a1"}
    runtime.drain("a2", drained=False)
    runtime.apply(cluster("a2"))
    assert served() == {"a1", "a2"}, "what was done by hand stays until the file changes its mind"
    runtime.drain("a1", drained=True)
    runtime.apply(cluster())
    assert served() == {"a2"}
    await runtime.close()
