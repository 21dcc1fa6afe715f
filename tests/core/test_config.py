"""What a configuration file may say, and what is said about one that cannot be used."""

import dataclasses
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_core.config import (
    Config,
    Listen,
    PolicyConfig,
    RedisConfig,
    load,
    loads,
    policy_named,
    warnings,
)
from lb_core.config.addresses import redis_url
from lb_core.errors import ConfigError
from lb_core.policies.cluster_metrics import ClusterMetrics
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.policies.least_request import GlobalLeastRequest
from lb_core.policies.prefix_cache import PrefixCache

CLUSTERS = "clusters: {llama: {endpoints: ['http://10.0.0.1:8000']}}\n"
SECRET = "c4n4ry-hunter2"


def config(text: str, env: Mapping[str, str] | None = None) -> Config:
    return loads(textwrap.dedent(text), "lb.yaml", env or {})


def problems(text: str, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text, env)
    return caught.value.lines()


def policy(lb_policy: str, lb_config: str) -> PolicyConfig:
    found = config(f"{CLUSTERS}lb_policy: {lb_policy}\nlb_config: {lb_config}\n").default_policy
    assert found is not None
    return found


REDIS_README = """
lb_type: endpoint
lb_policy: {policy}
lb_config:
  serviceFQDN: redis.static
  servicePort: 6379
  username: default
  password: '123456'
"""
METRICS_README = """
lb_type: endpoint
lb_policy: metrics_based
lb_config:
  metric_policy: {metric_policy}
  rate_limit: 0.6
"""
CLUSTER_README = """
lb_type: cluster
lb_policy: cluster_metrics
lb_config:
  mode: LeastTotalLatency
  rate_limit: 0.6
  service_list:
  - outbound|80||test-1.dns
  - outbound|80||test-2.static
clusters:
  outbound|80||test-1.dns: {endpoints: ["http://test-1.dns"]}
  outbound|80||test-2.static: {endpoints: ["http://10.0.0.2"]}
"""
README_REDIS = RedisConfig("redis.static", 6379, "default", "123456")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            REDIS_README.format(policy="global_least_request") + CLUSTERS,
            PolicyConfig("global_least_request", GlobalLeastRequest(), README_REDIS),
        ),
        (
            REDIS_README.format(policy="prefix_cache") + CLUSTERS,
            PolicyConfig("prefix_cache", PrefixCache(), README_REDIS),
        ),
        (
            METRICS_README.format(metric_policy="default") + CLUSTERS,
            PolicyConfig("endpoint_metrics", EndpointMetrics("default", rate_limit=0.6)),
        ),
        (
            METRICS_README.format(metric_policy="least\n  target_metric: vllm:num_requests_waiting")
            + CLUSTERS,
            PolicyConfig("endpoint_metrics", EndpointMetrics("least", "vllm:num_requests_waiting", 0.6)),
        ),
        (
            METRICS_README.format(metric_policy="least\n  target_metric: vllm:num_requests_running")
            + CLUSTERS,
            PolicyConfig("endpoint_metrics", EndpointMetrics("least", "vllm:num_requests_running", 0.6)),
        ),
        (
            CLUSTER_README,
            PolicyConfig(
                "cluster_metrics",
                ClusterMetrics(
                    "LeastTotalLatency",
                    ("outbound|80||test-1.dns", "outbound|80||test-2.static"),
                    rate_limit=0.6,
                ),
            ),
        ),
    ],
)
def test_every_example_of_the_higress_readme_loads_unchanged(text: str, expected: PolicyConfig) -> None:
    assert config(text).default_policy == expected


@pytest.mark.parametrize(
    ("lb_policy", "lb_config", "expected"),
    [
        ("global_least_request", "", PolicyConfig("global_least_request", GlobalLeastRequest())),
        (
            "global_least_request",
            "{maxRequestCount: 7}",
            PolicyConfig("global_least_request", GlobalLeastRequest(7)),
        ),
        (
            "global_least_request",
            "{max_request_count: 7}",
            PolicyConfig("global_least_request", GlobalLeastRequest(7)),
        ),
        (
            "global_least_request",
            "{cleanInterval: 5, enableDetailLog: false}",
            PolicyConfig("global_least_request", GlobalLeastRequest(), detail_log=False),
        ),
        ("prefix_cache", "{redisKeyTTL: 60}", PolicyConfig("prefix_cache", PrefixCache(60))),
        (
            "endpoint_metrics",
            "{metric_policy: default, rate_limit: '0.5'}",
            PolicyConfig("endpoint_metrics", EndpointMetrics("default", rate_limit=0.5)),
        ),
    ],
)
def test_higress_keys_and_our_own_names_mean_the_same(
    lb_policy: str, lb_config: str, expected: PolicyConfig
) -> None:
    assert policy(lb_policy, lb_config) == expected


@pytest.mark.parametrize(
    ("lb_config", "expected"),
    [
        ("{serviceFQDN: redis.dns}", RedisConfig("redis.dns", 6379)),
        ("{serviceFQDN: redis.dns, servicePort: '6380'}", RedisConfig("redis.dns", 6380)),
        ("{serviceFQDN: Redis.DNS, database: 3}", RedisConfig("redis.dns", database=3)),
        ("{serviceFQDN: redis.dns, password: 0123}", RedisConfig("redis.dns", password="0123")),
        ("{serviceFQDN: redis.dns, password: }", RedisConfig("redis.dns")),
        ("{redis: 'redis://u:p%40@redis.dns/3'}", RedisConfig("redis.dns", 6379, "u", "p@", 3)),
        ("{redis: 'redis://[::1]:6380'}", RedisConfig("::1", 6380)),
        ("{redis: 'rediss://redis.dns'}", RedisConfig("redis.dns", url="rediss://redis.dns")),
        (
            "{redis: 'redis+cluster://a:7000,b:7001'}",
            RedisConfig("a", 7000, url="redis+cluster://a:7000,b:7001"),
        ),
        (
            "{redis: 'redis+sentinel://a,b/main/0'}",
            RedisConfig("a", 26379, url="redis+sentinel://a,b/main/0"),
        ),
    ],
)
def test_redis_is_named_by_host_or_by_url(lb_config: str, expected: RedisConfig) -> None:
    assert policy("global_least_request", lb_config).redis == expected


def test_hosts_give_endpoints_their_addresses_and_leave_them_their_names() -> None:
    text = "clusters: {c: {endpoints: [https://GPU.test, {url: 'http://10.0.0.1:8000', name: b}]}}\n"
    plain = config(text).clusters["c"].endpoints
    named, other = config(text + "hosts: {gpu.test: 10.0.0.7}\n").clusters["c"].endpoints
    assert named == dataclasses.replace(plain[0], host="10.0.0.7", server_name="gpu.test")
    assert named.authority == "gpu.test"
    assert other == plain[1]


def test_hosts_give_undeclared_services_their_addresses() -> None:
    text = CLUSTER_README.partition("clusters:")[0] + "hosts: {test-2.static: 10.0.0.2}\n"
    (endpoint,) = config(text).clusters["outbound|80||test-2.static"].endpoints
    assert (endpoint.host, endpoint.authority) == ("10.0.0.2", "test-2.static")


OPTIONS = "valid options: db, sentinel_password, ssl_ca_certs, ssl_cert_reqs, tls"


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        (
            "rediss://h?ssl_ca_cert=/ca.pem",
            f"an option of the Redis URL is unknown; did you mean 'ssl_ca_certs'? {OPTIONS}",
        ),
        ("redis://u:hunter2?hunter3@h", "the port is not a whole number between 1 and 65535"),
        ("redis://u?hunter2@h", f"an option of the Redis URL is unknown; {OPTIONS}"),
        ("redis+cluster://h?tls=yes", "the option tls of the Redis URL is not true or false"),
        ("rediss://h?ssl_cert_reqs=no", "the option ssl_cert_reqs of the Redis URL is not none or required"),
        (
            "redis+sentinel://h/m?ssl_ca_certs=/ca.pem",
            "the option ssl_ca_certs of the Redis URL is for TLS: rediss://, or tls=true",
        ),
        ("redis+cluster://h?sentinel_password=hunter2", "sentinel_password is for redis+sentinel://"),
        ("rediss://h?db=x", "the database in a Redis URL is a number, such as redis://10.0.0.5:6379/0"),
        ("redis+cluster://h/abc", "the database in a Redis URL is a number, such as redis://10.0.0.5:6379/0"),
        (
            "redis+sentinel://h/m/x",
            "the database in a Redis URL is a number, such as redis://10.0.0.5:6379/0",
        ),
        ("redis+sentinel://h/m/0/1", "a Redis URL has no more than a service and a database as its path"),
        ("rediss://h/0#hunter2", "a Redis URL has no fragment; in a password write %23 for #"),
        (
            "rediss://a,b",
            "redis:// and rediss:// name one server; see redis+cluster:// and redis+sentinel://",
        ),
    ],
)
def test_a_fault_of_a_redis_url_is_told_with_the_others(url: str, fault: str) -> None:
    found = problems(f"{CLUSTERS}lb_policy: prefix_cache\nlb_config:\n  redis: '{url}'\nrouts: []\n")
    assert found[0] == f"lb.yaml:4: lb_config.redis: {fault}"
    assert len(found) == 2
    assert "hunter" not in found[0]


@pytest.mark.parametrize(
    "url",
    [
        "rediss://h:1/3?ssl_ca_certs=/ca.pem&ssl_cert_reqs=none",
        "redis://h?db=3&tls=true&ssl_cert_reqs=required",
        "redis+cluster://a,b?tls=true&ssl_ca_certs=/ca.pem",
        "redis+sentinel://a,b?tls=false&sentinel_password=x",
        "redis+sentinel://a/main",
    ],
)
def test_a_redis_url_may_have_the_options_that_are_known(url: str) -> None:
    assert redis_url(url, timeout_ms=3000).url == url


@pytest.mark.parametrize(
    ("url", "located"),
    [
        ("rediss://R.test:6380/0", {"r.test": "10.0.0.5"}),
        ("redis://r.test/0?db=1", {"r.test": "10.0.0.5"}),
        ("redis+cluster://r.test", {"r.test": "10.0.0.5", "other.test": "10.0.0.6"}),
        ("redis+sentinel://s1,r.test/m/0", {"r.test": "10.0.0.5", "other.test": "10.0.0.6"}),
    ],
)
def test_hosts_give_redis_servers_of_every_kind_their_address(url: str, located: dict[str, str]) -> None:
    hosts = {"r.test": "10.0.0.5", "other.test": "10.0.0.6"}
    assert dict(redis_url(url, timeout_ms=3000, hosts=hosts).located) == located
    assert redis_url("redis://r.test", timeout_ms=3000, hosts=hosts) == RedisConfig("10.0.0.5")
    assert redis_url(url, timeout_ms=3000) != redis_url(url, timeout_ms=3000, hosts=hosts)


def test_redis_timeout_is_read_in_milliseconds_and_does_not_tell_servers_apart() -> None:
    redis = policy("prefix_cache", "{serviceFQDN: redis.dns, timeout: 50}").redis
    assert redis is not None
    assert redis.timeout_ms == 50
    assert redis == RedisConfig("redis.dns")


def test_hosts_give_redis_its_address() -> None:
    text = f"{CLUSTERS}hosts: {{redis.static: 10.0.0.5}}\n" + REDIS_README.format(policy="prefix_cache")
    loaded = config(text)
    assert loaded.hosts == {"redis.static": "10.0.0.5"}
    assert loaded.default_policy is not None
    assert loaded.default_policy.redis == RedisConfig("10.0.0.5", 6379, "default", "123456")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", Listen("127.0.0.1", 8080)),
        ("'8080'", Listen("127.0.0.1", 8080)),
        (":8080", Listen("127.0.0.1", 8080)),
        ("127.0.0.1:8080", Listen("127.0.0.1", 8080)),
        ("'[::1]:8080'", Listen("::1", 8080)),
        ("localhost:22", Listen("localhost", 22)),
        ("{host: 0.0.0.0, port: 80, http2: false}", Listen("0.0.0.0", 80, http2=False)),
        ("{port: 80}", Listen("127.0.0.1", 80)),
        ("0.0.0.0:8080", Listen("0.0.0.0", 8080)),
    ],
)
def test_listen_is_written_as_people_write_addresses_and_is_local_unless_asked_otherwise(
    text: str, expected: Listen
) -> None:
    loaded = config(f"{CLUSTERS}listen: {text}\nmetrics_listen: {text}")
    assert loaded.listen == expected
    assert loaded.metrics_listen == expected


def test_endpoints_have_stable_names_default_ports_and_their_limits() -> None:
    loaded = config("""
        clusters:
          llama:
            balance: least_request
            endpoints:
              - http://10.0.0.1:8000/
              - {url: "https://GPU.Example", name: gpu-2, weight: 2, max_in_flight: 64, models: ["llama-*"]}
              - url: http://[::1]
                models: mistral
    """)
    first, second, third = loaded.clusters["llama"].endpoints
    assert loaded.clusters["llama"].balance == "least_request"
    assert (first.name, first.scheme, first.host, first.port) == (
        "llama-e1736e4b8371",
        "http",
        "10.0.0.1",
        8000,
    )
    assert (second.name, second.host, second.port, second.weight) == ("gpu-2", "gpu.example", 443, 2)
    assert (second.max_in_flight, second.models) == (64, ("llama-*",))
    assert (third.host, third.port, third.models, third.max_in_flight) == ("::1", 80, ("mistral",), None)


def test_a_thousand_endpoints_without_names_have_names_of_their_own_that_tell_no_address() -> None:
    urls = [f"http://10.0.{number >> 8}.{number & 255}:80" for number in range(1000)]
    names = [each.name for each in config(f"clusters: {{c: {{endpoints: {urls}}}}}").clusters["c"].endpoints]
    assert len(set(names)) == 1000
    again = config(f"clusters: {{c: {{endpoints: {urls[::-1]}}}}}").clusters["c"].endpoints
    assert [each.name for each in reversed(again)] == names
    assert not any("10.0" in name for name in names)


def test_routes_keep_their_order_and_take_the_default_policy_only_by_having_none() -> None:
    loaded = config("""
        clusters: {a: {endpoints: []}, b: {endpoints: []}}
        routes:
          - match: {hosts: api.*, paths: [/v1/*, /v2/*], models: "llama-*"}
            cluster: a
          - {name: rest, cluster: b, lb_policy: prefix_cache}
          - name: any
            lb_type: cluster
            lb_policy: cluster_metrics
            lb_config: {mode: LeastBusy, service_list: [a, b]}
    """)
    first, rest, any_cluster = loaded.routes
    assert (first.name, first.cluster, first.policy) == ("route-1", "a", None)
    assert (first.match.hosts, first.match.paths, first.match.models) == (
        ("api.*",),
        ("/v1/*", "/v2/*"),
        ("llama-*",),
    )
    assert (rest.match.hosts, rest.policy) == ((), PolicyConfig("prefix_cache", PrefixCache()))
    assert (any_cluster.name, any_cluster.cluster) == ("any", None)


def test_one_cluster_without_routes_gets_everything() -> None:
    (route,) = config(CLUSTERS).routes
    assert (route.name, route.cluster, route.policy) == ("default", "llama", None)
    assert config(CLUSTERS).expose_decision is False


def test_aliases_and_merge_keys_share_settings() -> None:
    loaded = config("""
        clusters:
          a: &a
            balance: random
            endpoints: [{url: http://h1, <<: &limits {weight: 2, max_in_flight: 3}}]
          b: {<<: *a, endpoints: [{<<: *limits, url: http://h2, weight: 5}]}
        routes: [{cluster: a}]
    """)
    (endpoint,) = loaded.clusters["b"].endpoints
    assert loaded.clusters["b"].balance == "random"
    assert (endpoint.weight, endpoint.max_in_flight) == (5, 3)


ENV = {"PORT": "6400", "EMPTY": "", "PW": SECRET, "DIGITS": "0123", "YAML": "{a: b}, *x # y", "ON": "true"}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("serviceFQDN: r\n servicePort: ${PORT}", RedisConfig("r", 6400)),
        ("serviceFQDN: r\n servicePort: '${PORT}'", RedisConfig("r", 6400)),
        ("serviceFQDN: r\n servicePort: ${NO_PORT:-6401}", RedisConfig("r", 6401)),
        ("serviceFQDN: r${EMPTY:-1}${EMPTY}", RedisConfig("r1")),
        ("serviceFQDN: r\n password: ${DIGITS}", RedisConfig("r", password="0123")),
        ("serviceFQDN: r\n password: ${YAML}", RedisConfig("r", password=ENV["YAML"])),
        ("serviceFQDN: r\n password: $${PW}$", RedisConfig("r", password="${PW}$")),
        ("redis: redis://:${PW}@r", RedisConfig("r", password=SECRET)),
    ],
)
def test_variables_are_filled_after_parsing(lines: str, expected: RedisConfig) -> None:
    loaded = config(f"{CLUSTERS}lb_policy: prefix_cache\nlb_config:\n {lines}\n", ENV)
    assert loaded.default_policy is not None
    assert loaded.default_policy.redis == expected


def test_a_filled_value_is_typed_only_where_it_stands_without_quotes() -> None:
    assert config(f"{CLUSTERS}expose_decision: ${{ON}}\n", ENV).expose_decision is True
    assert problems(f"{CLUSTERS}expose_decision: '${{ON}}'\n", ENV) == [
        "lb.yaml:2: expose_decision: expected true or false, got the value of ${ON}"
    ]


TOP_KEYS = (
    "clusters, drain_timeout, expose_decision, hosts, lb_config, lb_policy, lb_type, listen, metrics_listen,"
    " retry, routes, timeouts"
)
VALID_POLICIES = (
    "cluster_metrics, consistent_hash, endpoint_metrics, global_least_request, least_request, prefix_cache,"
    " random, round_robin"
)
BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [": the file is empty; expected a mapping with the key 'clusters'"]),
        ("- a", ["1: expected a mapping of keys at the top level"]),
        (
            "a: [",
            [
                "1: not valid YAML: while parsing a flow node, expected the node content,"
                " but found '<stream end>'"
            ],
        ),
        ("clusters:\n\ta: 1", ["2: not valid YAML: a tab; indent and separate with spaces"]),
        ("listen:\t80", ["1: not valid YAML: a tab; indent and separate with spaces"]),
        ("clusters: b: c", ["1: not valid YAML: mapping values are not allowed here"]),
        ("\n\x01", ["2: not valid YAML: a character that is not allowed"]),
        ("[" * 5000, ["1: not valid YAML: nested too deeply"]),
        (
            "---\na: 1\n---\n",
            ["3: not valid YAML: expected a single document in the stream, but found another document"],
        ),
        (BOMB, ["6: f: more than 100000 values, aliases expanded"]),
        ("x" * 1_000_001, [": larger than 1000000 bytes"]),
        (
            CLUSTERS + "hosts: &a {b: *a}\n",
            ["2: hosts.b: an alias contains itself"],
        ),
        (
            CLUSTERS + "hosts: !!python/object/apply:os.system [id]\n",
            [
                "2: hosts: the tag !!python/object/apply:os.system is not allowed;"
                " text that begins with ! needs quotes"
            ],
        ),
        (CLUSTERS + "\n" + CLUSTERS, ["3: clusters: given twice; the first is on line 1"]),
        (CLUSTERS + "hosts: {? [a] : b}", ["2: hosts: a key must be plain text"]),
        (CLUSTERS + 'listen: "\\ud800"', ["2: listen: not valid Unicode text"]),
        ('listen: "\\UFFFFFFFF"', [": not valid YAML: an impossible number in an escape or directive"]),
        (
            CLUSTERS + "listen: ${HOST}:80",
            ["2: listen: environment variable HOST is not set; ${HOST:-default} gives it a default"],
        ),
        (CLUSTERS + "listen: '${1}'", ["2: listen: ${ names no variable; write $${ for a literal ${"]),
        (
            CLUSTERS + "hosts: {a: ${A}}",
            [
                "2: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got '{';"
                " within {…} and […] a ${VARIABLE} needs quotes"
            ],
        ),
    ],
)
def test_text_that_cannot_be_read_is_a_problem_with_its_line(text: str, expected: list[str]) -> None:
    assert problems(text) == [f"lb.yaml{'' if line.startswith(':') else ':'}{line}" for line in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cluster: {}", f"2: cluster: unknown key; did you mean 'clusters'? valid keys: {TOP_KEYS}"),
        ("x: 1", f"2: x: unknown key; valid keys: {TOP_KEYS}"),
        ("expose_decision: 1", "2: expose_decision: expected true or false, got 1"),
        (
            "listen: 70000",
            "2: listen: 70000: the port is not a whole number between 1 and 65535;"
            " expected an address such as 127.0.0.1:8080",
        ),
        (
            "listen: '*:8080'",
            "2: listen: '*:8080': for every interface use 0.0.0.0:8080;"
            " expected an address such as 127.0.0.1:8080",
        ),
        ("listen: {host: x}", "2: listen: the key 'port' is missing"),
        ("hosts: {a: 5}", "2: hosts.a: expected an IP address or host name, got 5"),
        ("routes: {a: 5}", "2: routes: expected a list, got a mapping"),
        (
            "routes: [{cluster: lama}]",
            "2: routes[0].cluster: no cluster is named 'lama'; did you mean 'llama'?",
        ),
        ("routes:\n- name: a", "3: routes[0]: the key 'cluster' is missing"),
        (
            "routes: [{cluster: llama, name: a b}]",
            "2: routes[0].name: a name has no white space, control characters or braces",
        ),
        (
            "routes:\n- {cluster: llama, name: a}\n- cluster: llama\n  name: a",
            "5: routes[1].name: the name 'a' belongs to another route already",
        ),
        (
            "routes: [{cluster: llama, match: {models: 7}}]",
            "2: routes[0].match.models: expected a list, got 7",
        ),
        (
            "lb_policy: global_least_requests",
            "2: lb_policy: unknown policy 'global_least_requests'; did you mean 'global_least_request'?"
            f" valid policies: {VALID_POLICIES}",
        ),
        ("lb_config: {}", f"2: lb_config: the key 'lb_policy' is missing; valid policies: {VALID_POLICIES}"),
        (
            "lb_type: cluster\nlb_policy: prefix_cache",
            "2: lb_type: prefix_cache needs lb_type 'endpoint', got 'cluster'",
        ),
        ("lb_type: host\nlb_policy: prefix_cache", "2: lb_type: 'host' is not 'endpoint' or 'cluster'"),
        (
            "lb_policy: metrics_based\nlb_config:\n  metric_policy: leest",
            "4: lb_config.metric_policy: 'leest' is not one of 'default', 'least', 'most'",
        ),
        (
            "lb_policy: metrics_based\nlb_config:\n  metric_policy: least",
            "3: lb_config: metric_policy 'least' needs target_metric, the name of a metric",
        ),
        (
            "lb_policy: cluster_metrics\nlb_config: {service_list: [llama]}",
            "3: lb_config: the key 'mode' is missing",
        ),
        (
            "lb_policy: metrics_based\nlb_config: {metric_policy: default, rate_limit: 'nan'}",
            "3: lb_config.rate_limit: 'nan' is not more than 0 and at most 1",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {redisKeyTTL: 0}",
            "3: lb_config.redisKeyTTL: 0 is not more than 0",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {redisKeyTTL: true}",
            "3: lb_config.redisKeyTTL: expected a number, got true",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {redisKeyTTL: 1, redis_key_ttl_s: 1}",
            "3: lb_config.redis_key_ttl_s: 'redisKeyTTL' is the same parameter; give one of them",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {serviceFQDN: r, servicePort: abc}",
            "3: lb_config.servicePort: expected a whole number, got 'abc'",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {serviceFQDN: r, redis: 'redis://r'}",
            "3: lb_config.redis: serviceFQDN names a Redis too; give one of them",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {database: 3}",
            "3: lb_config.database: belongs to serviceFQDN; without serviceFQDN there is no Redis",
        ),
        (
            "lb_policy: prefix_cache\nlb_config: {serviceFQDN: r, servicePrt: 3}",
            "3: lb_config.servicePrt: unknown key; did you mean 'servicePort'? valid keys:"
            " cleanInterval, database, enableDetailLog, max_imbalance, max_prefix_entries, password, redis,"
            " redisKeyTTL, secret, serviceFQDN, servicePort, tenant_header, timeout, username",
        ),
        (
            "lb_policy: cluster_metrics\nlb_config: {mode: LeastBusy, service_list: [llama, lama]}",
            "3: lb_config.service_list[1]: no cluster is named 'lama'; did you mean 'llama'?",
        ),
    ],
)
def test_a_wrong_value_is_told_with_its_line_path_and_remedy(text: str, expected: str) -> None:
    assert problems(CLUSTERS + text) == [f"lb.yaml:{expected}"]


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("5", ": expected a URL or a mapping with 'url', got 5"),
        ("{name: x}", ": the key 'url' is missing"),
        ("ftp://h", ": expected an http or https URL such as http://10.0.0.1:8000"),
        ("http://h/v1", ": remove what follows the host and port: path and query come with each request"),
        ("http://h?", ": remove what follows the host and port: path and query come with each request"),
        (f"http://u:{SECRET}@h", ": an endpoint's URL has no user name or password"),
        ("http://h:0", ": the port is not a whole number between 1 and 65535"),
        ("http://::1", ": an IPv6 address needs brackets, such as [::1]:8080"),
        ("http://1.2.3.4.5", ": not a valid IP address"),
        ("'http://h\\n'", ": not a valid host name or IP address"),
        (f"http://{'é' * 64}.x", ": not a valid host name: each part between dots has 1 to 63 characters"),
        ("{url: http://h, weight: 0}", ".weight: 0 is not more than 0 and at most 1000"),
        ("{url: http://h, weight: .nan}", ".weight: expected a number, got '.nan'"),
        ("{url: http://h, max_in_flight: 0}", ".max_in_flight: 0 is not at least 1"),
        ("{url: http://h, max_in_flight: 1.5}", ".max_in_flight: expected a whole number, got 1.5"),
        ("{url: http://h, models: ''}", ".models: must not be empty"),
        (
            "{url: http://h, name: taken}",
            ".name: the name 'taken' belongs to clusters.a.endpoints[0] already",
        ),
        ("HTTP://First:80/", ": the same URL as endpoint 'taken' of this cluster"),
    ],
)
def test_a_wrong_endpoint_is_told(endpoint: str, expected: str) -> None:
    text = f"clusters:\n  a:\n    endpoints:\n    - {{url: http://first, name: taken}}\n    - {endpoint}\n"
    assert problems(text) == [f"lb.yaml:5: clusters.a.endpoints[1]{expected}"]


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = """
        listen: nowhere
        clusters:
          a: {endpoints: [ftp://h], balance: rr}
          b: 5
        routes:
          - cluster: c
            lb_policy: endpoint_metrics
            lb_config:
              metric_policy: default
              rate_limit: 1.5
              timeout: ${T}
        junk: 1
    """
    assert problems(text) == [
        "lb.yaml:2: listen: 'nowhere': the port is missing; expected an address such as 127.0.0.1:8080",
        "lb.yaml:4: clusters.a.balance: 'rr' is not one of"
        " 'round_robin', 'least_request', 'random', 'consistent_hash'",
        "lb.yaml:4: clusters.a.endpoints[0]: expected an http or https URL such as http://10.0.0.1:8000",
        "lb.yaml:5: clusters.b: expected a mapping, got a number",
        "lb.yaml:7: routes[0].cluster: no cluster is named 'c'",
        "lb.yaml:11: routes[0].lb_config.rate_limit: 1.5 is not more than 0 and at most 1",
        "lb.yaml:12: routes[0].lb_config.timeout: environment variable T is not set;"
        " ${T:-default} gives it a default",
        f"lb.yaml:13: junk: unknown key; valid keys: {TOP_KEYS}",
    ]


def test_several_clusters_need_routes() -> None:
    assert problems("clusters: {a: {endpoints: []}, b: {endpoints: []}}") == [
        "lb.yaml:1: clusters: several clusters need 'routes' that tell which requests go where"
    ]


def test_one_cluster_cannot_be_counted_in_two_places() -> None:
    text = (
        CLUSTERS
        + "lb_policy: prefix_cache\nlb_config: {serviceFQDN: r}\n"
        + "routes:\n- cluster: llama\n- cluster: llama\n"
    )
    own = "  lb_policy: prefix_cache\n  lb_config: {serviceFQDN: %s}\n"
    assert len(config(text).routes) == 2
    assert len(config(text + own % "R").routes) == 2
    assert problems(text + own % "other") == [
        "lb.yaml:8: routes[1].lb_config: route 'route-1' reaches cluster 'llama' with another Redis;"
        " the requests in flight at a cluster are counted in one place"
    ]


CLUSTER_README_ALONE = CLUSTER_README.partition("clusters:")[0]
SERVICES = "lb_policy: cluster_metrics\nlb_config: {{mode: LeastBusy, service_list: [{}]}}\n"


def test_the_cluster_example_of_the_higress_readme_needs_no_clusters() -> None:
    loaded = loads(CLUSTER_README_ALONE)
    assert loaded.default_policy is not None
    assert loaded.default_policy.policy == ClusterMetrics(
        "LeastTotalLatency", ("outbound|80||test-1.dns", "outbound|80||test-2.static"), 0.6
    )
    assert [(route.name, route.cluster) for route in loaded.routes] == [("default", None)]
    assert {
        name: [(endpoint.scheme, endpoint.host, endpoint.port) for endpoint in cluster.endpoints]
        for name, cluster in loaded.clusters.items()
    } == {
        "outbound|80||test-1.dns": [("http", "test-1.dns", 80)],
        "outbound|80||test-2.static": [("http", "test-2.static", 80)],
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("outbound|443||api.example.com", ("https", "api.example.com", 443)),
        ("outbound|8000||10.0.0.1", ("http", "10.0.0.1", 8000)),
        ("outbound|8000||GPU.Example", ("http", "gpu.example", 8000)),
        ("outbound|8000||::1", ("http", "::1", 8000)),
    ],
)
def test_an_undeclared_service_is_the_host_and_port_that_its_name_says(
    name: str, expected: tuple[str, str, int]
) -> None:
    cluster = config(SERVICES.format(f"'{name}'")).clusters[name]
    (endpoint,) = cluster.endpoints
    assert (endpoint.scheme, endpoint.host, endpoint.port) == expected
    assert (cluster.name, endpoint.name, cluster.balance) == (name, name, "round_robin")


def test_a_declared_cluster_is_meant_before_the_host_that_its_name_says() -> None:
    loaded = config(CLUSTER_README)
    assert loaded.clusters["outbound|80||test-2.static"].endpoints[0].host == "10.0.0.2"


def test_services_of_several_routes_may_be_declared_and_undeclared_alike() -> None:
    loaded = config(
        CLUSTERS
        + """routes:
- {name: one, match: {models: m}, lb_policy: cluster_metrics,
   lb_config: {mode: LeastBusy, service_list: [llama, outbound|80||h]}}
- {name: two, match: {models: n}, lb_policy: cluster_metrics,
   lb_config: {mode: LeastBusy, service_list: [outbound|80||h]}}
- {name: three, cluster: llama}
"""
    )
    assert list(loaded.clusters) == ["llama", "outbound|80||h"]
    assert [route.cluster for route in loaded.routes] == [None, None, "llama"]


LIKE = "expected a cluster of this configuration or a name such as outbound|80||test-1.dns"


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ("lama", "no cluster is named 'lama'; did you mean 'llama'?"),
        ("other", "no cluster is named 'other'"),
        ("outbound|80|v1|h", LIKE),
        ("inbound|80||h", LIKE),
        ("outbound|80||", "not a valid host name or IP address"),
        ("outbound|80||h|x", LIKE),
        ("outbound|http||h", "the port is not a whole number between 1 and 65535"),
        ("outbound|0||h", "the port is not a whole number between 1 and 65535"),
        ("outbound|80||a b", "not a valid host name or IP address"),
        ("outbound|80||http://h", "not a valid host name or IP address"),
        (f"outbound|80||{'h.' * 70}x", "a name has 1 to 128 characters"),
    ],
)
def test_a_service_that_is_neither_a_cluster_nor_a_host_is_told(service: str, expected: str) -> None:
    assert problems(CLUSTERS + SERVICES.format(f"'{service}'")) == [
        f"lb.yaml:3: lb_config.service_list[0]: {expected}"
    ]


def test_clusters_are_missed_only_where_no_policy_brings_its_own() -> None:
    missing = "lb.yaml:1: the key 'clusters' is missing"
    assert problems("listen: 80") == [missing]
    assert problems("lb_policy: prefix_cache") == [missing]
    assert problems(CLUSTER_README_ALONE.replace("LeastTotalLatency", "Fast")) == [
        "lb.yaml:5: lb_config.mode: 'Fast' is not one of"
        " 'LeastBusy', 'LeastTotalLatency', 'LeastFirstTokenLatency'"
    ]
    assert problems(SERVICES.format("other")) == [
        "lb.yaml:2: lb_config.service_list[0]: no cluster is named 'other'"
    ]


def test_a_cluster_beside_a_policy_that_chooses_it_is_told() -> None:
    one = (
        "- {cluster: llama, lb_policy: cluster_metrics, lb_config: {mode: LeastBusy, service_list: [llama]}}"
    )
    assert problems(f"{CLUSTERS}routes:\n{one}\n") == [
        "lb.yaml:3: routes[0].cluster: the route's policy chooses the cluster; leave this key out"
    ]
    assert problems(f"{CLUSTERS}{SERVICES.format('llama')}routes: [{{cluster: llama}}]") == [
        "lb.yaml:4: routes[0].cluster: the default policy chooses the cluster; leave this key out"
    ]


def test_an_endpoint_cannot_have_the_name_of_an_undeclared_service() -> None:
    text = "clusters: {a: {endpoints: [{url: http://h, name: outbound|80||h}]}}\n"
    assert problems(text + SERVICES.format("a, outbound|80||h")) == [
        "lb.yaml:1: clusters.a.endpoints: the name 'outbound|80||h' belongs to an undeclared service already"
    ]


def test_an_undeclared_service_cannot_be_counted_in_two_places() -> None:
    own = (
        "- {name: %s, lb_policy: cluster_metrics,"
        " lb_config: {mode: LeastBusy, service_list: [outbound|80||h], serviceFQDN: %s}}\n"
    )
    assert len(config("routes:\n" + own % ("a", "r") + own % ("b", "r")).routes) == 2
    assert problems("routes:\n" + own % ("a", "r") + own % ("b", "other")) == [
        "lb.yaml:3: routes[1].lb_config: route 'a' reaches cluster 'outbound|80||h' with another Redis;"
        " the requests in flight at a cluster are counted in one place"
    ]


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("mode: LeastLatency", ".mode: 'LeastLatency' is not one of"),
        ("service_list: []", ".service_list: must not be empty"),
        ("service_list: [llama, llama]", ".service_list: a service is listed twice"),
        ("service_list: llama", ".service_list: expected a list, got 'llama'"),
        ("rate_limit: 1.5", ".rate_limit: 1.5 is not more than 0 and at most 1"),
        ("queue_size: 0", ".queue_size: 0 is not between 1 and 1000000"),
        ("sample_ttl: 0", ".sample_ttl: 0 is not more than 0"),
        ("cluster_header: 'a b'", ".cluster_header: not a valid header name"),
        ("cluster_header: ''", ".cluster_header: not a valid header name"),
        ("cluster_header: Host", ".cluster_header: HTTP itself needs this header; expected one of its own"),
    ],
)
def test_a_wrong_parameter_of_cluster_metrics_is_told(parameter: str, expected: str) -> None:
    keys = {"mode": "mode: LeastBusy", "service_list": "service_list: [llama]"}
    keys[parameter.partition(":")[0]] = parameter
    text = f"{CLUSTERS}lb_policy: cluster_metrics\nlb_config: {{{', '.join(keys.values())}}}\n"
    with pytest.raises(ConfigError) as caught:
        loads(text, "lb.yaml", {})
    (line,) = caught.value.lines()
    assert line.startswith(f"lb.yaml:3: lb_config{expected}")


def test_cluster_metrics_takes_numbers_as_text_as_higress_does() -> None:
    text = CLUSTER_README_ALONE.replace("0.6", "'0.6'") + "  queue_size: '50'\n  sample_ttl: 5\n"
    policy = loads(text).default_policy
    assert policy is not None
    assert isinstance(policy.policy, ClusterMetrics)
    assert (policy.policy.rate_limit, policy.policy.queue_size, policy.policy.sample_ttl) == (0.6, 50, 5)
    assert policy.policy.cluster_header == "x-envoy-target-cluster"


def test_a_missing_file_is_named_as_the_user_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^conf/lb\.yaml: no such file; looked for 'conf/lb\.yaml'$"):
        load(Path("conf/lb.yaml"))


def test_a_file_is_read_as_utf_8_with_or_without_a_mark_and_never_in_part(tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text("\ufeff" + CLUSTERS, encoding="utf-8")
    assert list(load(path).clusters) == ["llama"]
    for content, message in [
        (CLUSTERS.encode() + b"# \xff", "2: not UTF-8 text"),
        (b"#" * 1_000_001, " larger than 1000000 bytes"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.lines() == [f"{path}:{message}"]
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Path("a\0b"))


def test_a_policy_by_name_keeps_the_redis_and_takes_its_own_defaults() -> None:
    loaded = config(REDIS_README.format(policy="prefix_cache") + "  redisKeyTTL: 9\n" + CLUSTERS)
    assert policy_named("prefix_cache", loaded) is loaded.default_policy
    swapped = policy_named("global_least_request", loaded)
    assert swapped == PolicyConfig("global_least_request", GlobalLeastRequest(), README_REDIS)
    plain = policy_named("prefix_cache", config(CLUSTERS))
    assert plain == PolicyConfig("prefix_cache", PrefixCache())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", f"unknown policy 'best'; valid policies: {VALID_POLICIES}"),
        ("cluster_metrics", "cluster_metrics: the key 'mode' is missing; .* 'service_list' is missing"),
    ],
)
def test_a_policy_by_name_is_refused_when_it_is_unknown_or_needs_parameters(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"lb.yaml: {message}$"):
        policy_named(name, config(CLUSTERS))


SECRETIVE = """
listen: 127.0.0.1:8080
hosts: {redis.static: 10.0.0.5}
clusters:
  llama:
    endpoints:
      - http://10.0.0.1:8000
      - {url: http://10.0.0.2:8000, name: gpu-2, weight: 2, models: ["llama-*"]}
      - dns+http://engines.example:8000
    health:
      ejection_s: 5
      checks: {path: /health, fall: 2}
    metrics:
      path: /metrics
      headers:
        Authorization: Bearer SECRET
        X-Key: 'SECRET'
      scrape_interval: 2
timeouts: {ttft_timeout: 30, stream_idle: off}
drain_timeout: 5
routes:
  - name: chat
    retry: {attempts: 2, on_statuses: [503]}
    match: {hosts: ["api.*"], paths: ["/v1/*"]}
    cluster: llama
    lb_policy: prefix_cache
    lb_config:
      redis: redis://:SECRET@redis.static/0
  - cluster: llama
lb_type: endpoint
lb_policy: global_least_request
lb_config:
  serviceFQDN: redis.static
  servicePort: 6379
  timeout: 100
  password: 'SECRET'
  maxRequestCount: 9
""".replace("SECRET", SECRET)


@pytest.mark.parametrize(
    "text",
    [
        f"password: *{SECRET}",
        f"password: !{SECRET}",
        f"password: !{SECRET}!x y",
        f"password: !!{SECRET} x",
        f"password: &{SECRET}",
        f"password: [{SECRET}]",
        f"{{password:{SECRET}}}",
        f"pasword: {SECRET}",
        f"servicePort: 6379\n    password '{SECRET}'",
        f"redis: http://:{SECRET}@h",
        f"redis: redis://:{SECRET}@h:99999",
        f"redis: [redis://:{SECRET}@h]",
        f"serviceFQDN: redis://:{SECRET}@h",
        "servicePort: ${PW}",
    ],
)
def test_no_message_repeats_a_secret(text: str) -> None:
    lines = problems(f"{CLUSTERS}lb_policy: prefix_cache\nlb_config:\n  {text}\n", ENV)
    assert SECRET not in "".join(lines)


def test_no_repr_shows_a_secret() -> None:
    for redis in (
        "serviceFQDN: r, password: 'SECRET'",
        "redis: 'redis://:SECRET@r'",
        "redis: 'rediss://:SECRET@r'",
    ):
        loaded = config(
            f"{CLUSTERS}lb_policy: prefix_cache\nlb_config: {{{redis.replace('SECRET', SECRET)}}}\n"
        )
        assert SECRET not in repr(loaded) + str(loaded)


def _outcome(text: str) -> Config | ConfigError:
    try:
        return loads(text, "lb.yaml", ENV)
    except ConfigError as error:
        found = error
    lines = [problem.line or 0 for problem in found.problems]
    assert lines
    assert lines == sorted(lines)
    assert "pydantic" not in str(found)
    return found


@given(st.text() | st.text("ab:-[]{}&*!<?|>#'\"\\ \n\t$%@`0~,.=Ux\x85\u2028"))
@settings(max_examples=500, deadline=None)
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    _outcome(text)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_any_damage_to_a_good_text_is_a_config_error_without_its_secrets(data: st.DataObject) -> None:
    text = SECRETIVE
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 3)))
        text = text[:start] + data.draw(st.text("ab:-[]{}&*!'\" \n$0", max_size=2)) + text[end:]
    outcome = _outcome(text)
    if isinstance(outcome, Config):
        metrics = [cluster.metrics for cluster in outcome.clusters.values()]
        assert SECRET not in repr((outcome.default_policy, metrics))
    else:
        assert SECRET not in str(outcome)


ODD = st.sampled_from(
    [
        "",
        "~",
        "true",
        "-1",
        "0",
        "1.5",
        "99999999999999999999",
        "x y",
        "[]",
        "[1]",
        "{}",
        "{a: 1}",
        "'1'",
        "2020-01-01",
        ".inf",
    ]
)
LINES = SECRETIVE.strip().splitlines()


@given(st.lists(st.tuples(st.sampled_from(range(len(LINES))), ODD), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_value_of_the_wrong_kind_is_a_config_error(changes: list[tuple[int, str]]) -> None:
    lines = list(LINES)
    for number, value in changes:
        key, colon, _ = lines[number].partition(": ")
        lines[number] = (
            f"{key.removesuffix(':')}: {value}" if colon or key.endswith(":") else f"{key} {value}"
        )
    outcome = _outcome("\n".join(lines))
    assert SECRET not in str(outcome)


def test_the_undamaged_text_is_good() -> None:
    assert isinstance(_outcome(SECRETIVE), Config)


@pytest.mark.parametrize(
    ("policy", "key"), [("prefix_cache", "tenant_header"), ("endpoint_metrics", "criticality_header")]
)
def test_a_header_that_a_policy_reads_has_a_valid_name(policy: str, key: str) -> None:
    text = f"{CLUSTERS}lb_policy: {policy}\nlb_config: {{{key}: VALUE}}\n"
    for bad in ("'bad header'", "'x:y'", "'x\u00e4'"):
        with pytest.raises(ConfigError) as caught:
            loads(text.replace("VALUE", bad), "lb.yaml")
        assert caught.value.lines() == [f"lb.yaml:3: lb_config.{key}: not a valid header name"]
    for good in ("''", "X-Tenant"):
        assert loads(text.replace("VALUE", good)).default_policy is not None


def test_h19_an_address_in_two_clusters_is_warned_of() -> None:
    clusters = "clusters: {one: {endpoints: [%s]}, two: {endpoints: [%s]}}\nroutes: [{cluster: one}]\n"
    shared = "{url: 'http://10.0.0.1:8000', name: %s}"
    assert warnings(loads(clusters % (shared % "a", shared % "b"))) == (
        "'b' of cluster 'two' has the address of 'a' of cluster 'one':"
        " each cluster counts its own requests, limits and health are per cluster",
    )
    assert warnings(loads(clusters % (shared % "a", "http://10.0.0.1:8001"))) == ()
