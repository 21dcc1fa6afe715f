"""The blocks of clusters and routes, and endpoints that are not listed by address."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import pytest

from lb_core.config import (
    ChecksConfig,
    ClusterConfig,
    Config,
    DnsEndpoints,
    HealthConfig,
    MetricsConfig,
    RetryConfig,
    Timeouts,
    load,
    load_endpoints,
    loads,
)
from lb_core.engines.dialects import DIALECTS
from lb_core.errors import ConfigError
from lb_core.types import Endpoint

ALL_OPTIONS = Path(__file__).resolve().parents[2] / "configs" / "all_options.yaml"
SECRET = "c4n4ry-hunter2"


def config(text: str) -> Config:
    return loads(textwrap.dedent(text), "conf/lb.yaml", {"TOKEN": SECRET})


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text)
    return caught.value.lines()


def cluster(block: str) -> ClusterConfig:
    """A cluster with further keys, which begin on line 4."""
    return config(in_cluster(block)).clusters["a"]


def in_cluster(block: str) -> str:
    return "clusters:\n  a:\n    endpoints: ['http://h']\n" + textwrap.indent(textwrap.dedent(block), "    ")


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("", HealthConfig()),
        ("health: {}", HealthConfig()),
        (
            "health: {ejection_s: 5, max_ejected: '0.3', consecutive_failures: 7}",
            HealthConfig(ejection_s=5, max_ejected=0.3, consecutive_failures=7),
        ),
        ("health: {consecutive_failures: null}", HealthConfig()),
        ("health: {checks: {}}", HealthConfig(checks=ChecksConfig())),
        ("health: {checks: true}", HealthConfig(checks=ChecksConfig())),
        ("health: {checks: false}", HealthConfig()),
        ("health: {checks: {path: ''}}", HealthConfig(checks=ChecksConfig(path=""))),
        (
            "health:\n  slow_start_s: 0\n  checks: {path: '/ready?x=1', fall: 5}",
            HealthConfig(slow_start_s=0, checks=ChecksConfig("/ready?x=1", fall=5)),
        ),
    ],
)
def test_health_is_read(block: str, expected: HealthConfig) -> None:
    assert cluster(block).health == expected


HEALTH_KEYS = (
    "checks, connect_failures, connect_window_s, consecutive_failures, ejection_s, failure_share,"
    " failure_share_requests, failure_share_window_s, max_ejected, max_ejection_s, max_ghost_s, panic_below,"
    " probe_successes, silent_s, slow_start_floor, slow_start_s"
)
PAGE_PATH = "expected a path such as /metrics, at most 1000 characters of ASCII without spaces"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("health: 5", "4: clusters.a.health: expected a mapping, got a number"),
        ("health:", "4: clusters.a.health: expected a mapping, got nothing"),
        (
            "health:\n  ejection: 5",
            "5: clusters.a.health.ejection: unknown key; did you mean 'ejection_s'?"
            f" valid keys: {HEALTH_KEYS}",
        ),
        (
            "health:\n  max_ejected: 0.5\n  panic_below: 50",
            "6: clusters.a.health.panic_below: 50 is not between 0 and 1",
        ),
        (
            "health: {connect_failures: 0}",
            "4: clusters.a.health.connect_failures: 0 is not between 1 and 1000",
        ),
        (
            "health: {connect_failures: 1.5}",
            "4: clusters.a.health.connect_failures: expected a whole number, got 1.5",
        ),
        ("health: {ejection_s: yes}", "4: clusters.a.health.ejection_s: expected a number, got yes"),
        (
            "health: {ejection_s: 0}",
            "4: clusters.a.health.ejection_s: 0 is not more than 0 and at most 86400",
        ),
        ("health: {checks: }", "4: clusters.a.health.checks: expected a mapping, got nothing"),
        ("health: {checks: /health}", "4: clusters.a.health.checks: expected a mapping, got text"),
        (
            "health:\n  checks:\n    intervall_s: 5",
            "6: clusters.a.health.checks.intervall_s: unknown key; did you mean 'interval_s'?"
            " valid keys: fall, interval_s, path, rise, timeout_s",
        ),
        (
            "health:\n  checks:\n    timeout_s: 100",
            "6: clusters.a.health.checks.timeout_s: 100 is not between 0.01 and 60",
        ),
        ("health: {checks: {path: health}}", f"4: clusters.a.health.checks.path: {PAGE_PATH}"),
        ("health: {checks: {path: 5}}", "4: clusters.a.health.checks.path: expected text, got 5"),
    ],
)
def test_a_wrong_value_in_health_is_told(block: str, expected: str) -> None:
    assert problems(in_cluster(block)) == [f"conf/lb.yaml:{expected}"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("", MetricsConfig()),
        ("metrics: {}", MetricsConfig()),
        (
            "metrics: {path: /stats, scrape_interval: 0.5, stale_after: 3, dialect: sglang}",
            MetricsConfig("/stats", {}, 0.5, "sglang", 3),
        ),
        ("metrics: {dialect: null, headers: {}}", MetricsConfig()),
        ("metrics: {scrape_interval: 2}", MetricsConfig(scrape_interval_s=2)),
        ("metrics: {scrape_interval: 10}", MetricsConfig(scrape_interval_s=10, stale_after_s=20)),
        ("metrics: {scrape_interval: 10, stale_after: 20}", MetricsConfig("/metrics", {}, 10, None, 20)),
        (
            "metrics:\n  headers:\n    authorization: Bearer ${TOKEN}\n    X-Digits: 0123\n    X-Empty: ''",
            MetricsConfig(headers={"authorization": f"Bearer {SECRET}", "X-Digits": "0123", "X-Empty": ""}),
        ),
    ],
)
def test_metrics_are_read(block: str, expected: MetricsConfig) -> None:
    assert cluster(block).metrics == expected


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_can_be_asked_for(dialect: str) -> None:
    metrics = cluster(f"metrics: {{dialect: {dialect}}}").metrics
    assert metrics is not None
    assert metrics.dialect == dialect


VALID_DIALECTS = "valid dialects: vllm, sglang, trtllm, triton, tgi, llamacpp"


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("metrics: /metrics", "4: clusters.a.metrics: expected a mapping, got text"),
        (
            "metrics:\n  scrape_interval_s: 2",
            "5: clusters.a.metrics.scrape_interval_s: unknown key; did you mean 'scrape_interval'?"
            " valid keys: dialect, headers, path, scrape_interval, stale_after",
        ),
        ("metrics: {path: metrics}", f"4: clusters.a.metrics.path: {PAGE_PATH}"),
        ("metrics: {path: ''}", f"4: clusters.a.metrics.path: {PAGE_PATH}"),
        ("metrics: {path: /a b}", f"4: clusters.a.metrics.path: {PAGE_PATH}"),
        ("metrics: {path: [/a]}", "4: clusters.a.metrics.path: expected text, got a list"),
        (
            "metrics:\n  scrape_interval: 0.01",
            "5: clusters.a.metrics.scrape_interval: 0.01 is not between 0.1 and 3600",
        ),
        (
            "metrics:\n  scrape_interval: on",
            "5: clusters.a.metrics.scrape_interval: expected a number, got on",
        ),
        (
            "metrics:\n  scrape_interval: 5\n  stale_after: 5",
            "6: clusters.a.metrics.stale_after: 5 s is less than twice scrape_interval, 5 s:"
            " what is known would be stale before the next page came",
        ),
        (
            "metrics: {stale_after: 1.9}",
            "4: clusters.a.metrics.stale_after: 1.9 s is less than twice scrape_interval, 1 s:"
            " what is known would be stale before the next page came",
        ),
        (
            "metrics: {dialect: vlm}",
            f"4: clusters.a.metrics.dialect: unknown dialect 'vlm'; did you mean 'vllm'? {VALID_DIALECTS}",
        ),
        (
            "metrics: {dialect: hal}",
            f"4: clusters.a.metrics.dialect: unknown dialect 'hal'; {VALID_DIALECTS}",
        ),
        ("metrics: {dialect: 5}", "4: clusters.a.metrics.dialect: expected text, got 5"),
        ("metrics: {headers: [a]}", "4: clusters.a.metrics.headers: expected a mapping, got a list"),
        ("metrics:\n  headers:\n    a b: x", "6: clusters.a.metrics.headers: a header's name is not valid"),
        ("metrics:\n  headers:\n    X-A:", "6: clusters.a.metrics.headers: a header has no value"),
        ("metrics: {headers: {X: [a]}}", "4: clusters.a.metrics.headers.X: expected text, got a list"),
        (
            'metrics: {headers: {X: "a\\nb"}}',
            "4: clusters.a.metrics.headers.X: not valid in a header: printable ASCII,"
            " without spaces at the ends",
        ),
        (
            "metrics:\n  headers:\n    X-A: b\n    x-a: c",
            "7: clusters.a.metrics.headers.x-a: given twice;"
            " upper and lower case are the same in a header's name",
        ),
        (
            "metrics: {headers: {Content-Length: 5}}",
            "4: clusters.a.metrics.headers.Content-Length: HTTP itself needs this header; leave it out",
        ),
    ],
)
def test_a_wrong_value_in_metrics_is_told(block: str, expected: str) -> None:
    assert problems(in_cluster(block)) == [f"conf/lb.yaml:{expected}"]


@pytest.mark.parametrize(
    "block",
    [
        "metrics: {headers: {X: '${TOKEN}'}}",
        f"metrics: {{headers: {{X: {SECRET}}}}}",
    ],
)
def test_no_repr_shows_what_a_header_holds(block: str) -> None:
    loaded = cluster(block)
    assert loaded.metrics is not None
    assert loaded.metrics.headers == {"X": SECRET}
    assert SECRET not in repr(loaded)
    assert isinstance(hash(loaded), int)


@pytest.mark.parametrize(
    "headers",
    [
        f"[{SECRET}]",
        SECRET,
        f"{{Authorization{SECRET}}}",
        f"{{Authorization Bearer {SECRET}}}",
        f"{{Authorization:{SECRET}}}",
        f"{{'Authorization: {SECRET}': x}}",
        f"{{X: [{SECRET}]}}",
        f"{{X: {{{SECRET}: 1}}}}",
        f"{{X: '{SECRET} '}}",
        f'{{X: "{SECRET}\\n"}}',
        f"{{X: é{SECRET}}}",
        f"{{te: {SECRET}}}",
        f"{{X: a, x: {SECRET}}}",
        f"{{X: !{SECRET}}}",
        f"{{X: *{SECRET}}}",
    ],
)
def test_no_message_repeats_what_a_header_holds(headers: str) -> None:
    assert SECRET not in "".join(problems(in_cluster(f"metrics:\n  headers: {headers}\n")))


ROUTE = "clusters: {a: {endpoints: ['http://h']}}\n"


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        ("{}", RetryConfig()),
        ("{enabled: false}", RetryConfig(enabled=False)),
        ("false", RetryConfig(enabled=False)),
        ("true", RetryConfig()),
        ("{attempts: 0, connect_attempts: 5}", RetryConfig(attempts=0, connect_attempts=5)),
        (
            "{on_statuses: [503, 504], budget_percent: 20.5, hold_streams: no}",
            RetryConfig(on_statuses=(503, 504), budget_percent=20.5, hold_streams=False),
        ),
        ("{hold_s: 0.5}", RetryConfig(hold_s=0.5)),
        (
            "{on_statuses: [], connect_timeout_s: 0.5, budget_per_s: 0}",
            RetryConfig(True, 1, 3, 0.5, (), 10, 0),
        ),
    ],
)
def test_retry_is_read_at_the_top_and_in_routes(retry: str, expected: RetryConfig) -> None:
    assert config(f"{ROUTE}retry: {retry}\n").routes[0].retry == expected
    (route,) = config(f"{ROUTE}routes: [{{cluster: a, retry: {retry}}}]\n").routes
    assert route.retry == expected


@pytest.mark.parametrize(
    ("timeouts", "expected"),
    [
        ("{}", Timeouts()),
        ("{ttft_timeout: 30}", Timeouts(30, 120)),
        ("{ttft_timeout: off, stream_idle: off}", Timeouts(None, None)),
        ("{ttft_timeout: 0, stream_idle: 0}", Timeouts(None, None)),
        ("{ttft_timeout: false, stream_idle: 'off'}", Timeouts(None, None)),
        ("{stream_idle: 0.5}", Timeouts(None, 0.5)),
        ("{stream_idle: '60'}", Timeouts(None, 60)),
    ],
)
def test_timeouts_are_read_at_the_top_and_in_routes(timeouts: str, expected: Timeouts) -> None:
    assert config(f"{ROUTE}timeouts: {timeouts}\n").routes[0].timeouts == expected
    (route,) = config(f"{ROUTE}routes: [{{cluster: a, timeouts: {timeouts}}}]\n").routes
    assert route.timeouts == expected


def test_a_route_without_a_block_takes_the_one_of_the_top_level_as_a_whole() -> None:
    own, none, empty = config("""
        clusters: {a: {endpoints: []}}
        retry: {attempts: 2, connect_attempts: 9}
        timeouts: {ttft_timeout: 7, stream_idle: 8}
        routes:
          - {cluster: a, retry: {attempts: 3}, timeouts: {ttft_timeout: 9}}
          - {cluster: a}
          - {cluster: a, retry: {}, timeouts: {}}
    """).routes
    assert (own.retry, own.timeouts) == (RetryConfig(attempts=3), Timeouts(9))
    assert (none.retry, none.timeouts) == (RetryConfig(attempts=2, connect_attempts=9), Timeouts(7, 8))
    assert (empty.retry, empty.timeouts) == (RetryConfig(), Timeouts())


RETRY_KEYS = (
    "attempts, budget_per_s, budget_percent, connect_attempts, connect_timeout_s, enabled, hold_s,"
    " hold_streams, on_statuses"
)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("retry: 3", ": expected a mapping, got a number"),
        (
            "retry: {attempt: 1}",
            f".attempt: unknown key; did you mean 'attempts'? valid keys: {RETRY_KEYS}",
        ),
        ("retry: {attempts: -1}", ".attempts: -1 is not between 0 and 100"),
        ("retry: {attempts: yes}", ".attempts: expected a number, got yes"),
        ("retry: {enabled: 1}", ".enabled: expected true or false, got 1"),
        ("retry: {connect_timeout_s: 0}", ".connect_timeout_s: 0 is not between 0.01 and 60"),
        ("retry: {hold_s: 0}", ".hold_s: 0 is not between 0.01 and 3600"),
        ("retry: {hold_streams: 2}", ".hold_streams: expected true or false, got 2"),
        ("retry: {budget_percent: .nan}", ".budget_percent: expected a number, got '.nan'"),
        ("retry: {on_statuses: 503}", ".on_statuses: expected a list, got 503"),
        ("retry: {on_statuses: [503, 200]}", ".on_statuses[1]: 200 is not between 400 and 599"),
        ("retry: {on_statuses: [all]}", ".on_statuses[0]: expected a whole number, got 'all'"),
        ("timeouts: 30", ": expected a mapping, got a number"),
        (
            "timeouts: {stream_idle_s: 3}",
            ".stream_idle_s: unknown key; did you mean 'stream_idle'? valid keys: stream_idle, ttft_timeout",
        ),
        ("timeouts: {stream_idle: }", ".stream_idle: expected seconds or off, got nothing"),
        ("timeouts: {stream_idle: on}", ".stream_idle: expected seconds or off, got on"),
        ("timeouts: {stream_idle: -1}", ".stream_idle: -1 is not more than 0 and at most 86400"),
        ("timeouts: {ttft_timeout: 2 min}", ".ttft_timeout: expected a number, got '2 min'"),
        ("timeouts: {ttft_timeout: [1]}", ".ttft_timeout: expected a number, got a list"),
    ],
)
def test_a_wrong_value_in_a_routes_block_is_told(block: str, expected: str) -> None:
    key = block.partition(":")[0]
    assert problems(f"{ROUTE}{block}\n") == [f"conf/lb.yaml:2: {key}{expected}"]
    assert problems(f"{ROUTE}routes:\n- cluster: a\n  {block}\n") == [
        f"conf/lb.yaml:4: routes[0].{key}{expected}"
    ]


def test_requests_may_be_given_time_to_end() -> None:
    assert config(ROUTE).drain_timeout_s == 30
    assert config(f"{ROUTE}drain_timeout: 0").drain_timeout_s == 0
    assert config(f"{ROUTE}drain_timeout: 3600").drain_timeout_s == 3600
    assert problems(f"{ROUTE}drain_timeout: 3601") == [
        "conf/lb.yaml:2: drain_timeout: 3601 is not between 0 and 3600"
    ]
    assert problems(f"{ROUTE}drain_timeout: on") == [
        "conf/lb.yaml:2: drain_timeout: expected a number, got on"
    ]


def test_dns_names_are_endpoints_of_their_own_kind() -> None:
    loaded = config("""
        clusters:
          a:
            endpoints:
              - dns+http://Engines.Example:8000
              - {url: dns+https://engines.example, name: all, weight: 2, max_in_flight: 3, models: m}
              - http://engines.example:8000
    """).clusters["a"]
    (plain,) = loaded.endpoints
    first, second = loaded.dns
    assert first == DnsEndpoints(Endpoint(first.template.name, "http", "engines.example", 8000))
    assert first.template.name.startswith("a-")
    assert first.template.name != plain.name
    assert second == DnsEndpoints(Endpoint("all", "https", "engines.example", 443, 2, 3, ("m",)))


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("dns+http://10.0.0.1:80", ": dns+http takes a host name; for an IP address write http"),
        ("dns+https://[::1]", ": dns+https takes a host name; for an IP address write https"),
        ("dns+http://h/v1", ": remove what follows the host and port: path and query come with each request"),
        ("dns+ftp://h", ": expected an http or https URL such as http://10.0.0.1:8000"),
        ("DNS+HTTP://First:80", ": the same URL as endpoint 'taken' of this cluster"),
        (
            "{url: dns+http://b, name: taken}",
            ".name: the name 'taken' belongs to clusters.a.endpoints[0] already",
        ),
    ],
)
def test_a_wrong_dns_name_is_told(endpoint: str, expected: str) -> None:
    text = (
        f"clusters:\n  a:\n    endpoints:\n    - {{url: dns+http://first, name: taken}}\n    - {endpoint}\n"
    )
    assert problems(text) == [f"conf/lb.yaml:5: clusters.a.endpoints[1]{expected}"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("eps.yaml", "conf/eps.yaml"), ("../eps.json", "conf/../eps.json"), ("/etc/eps.yaml", "/etc/eps.yaml")],
)
def test_a_file_of_endpoints_is_looked_for_beside_the_configuration(path: str, expected: str) -> None:
    loaded = config(f"clusters: {{a: {{endpoints_file: {path}}}}}").clusters["a"]
    assert (loaded.endpoints, loaded.endpoints_file) == ((), Path(expected))
    assert cluster(f"endpoints_file: {path}").endpoints[0].host == "h"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("{}", ": the key 'endpoints' is missing"),
        ("{endpoints_file: ''}", ".endpoints_file: must not be empty"),
        ("{endpoints_file: [a]}", ".endpoints_file: expected text, got a list"),
        (
            "{endpoint_file: a}",
            ".endpoint_file: unknown key; did you mean 'endpoints_file'?"
            " valid keys: balance, endpoints, endpoints_file, health, metrics",
        ),
    ],
)
def test_a_cluster_needs_endpoints_or_a_file_of_them(keys: str, expected: str) -> None:
    assert f"conf/lb.yaml:1: clusters.a{expected}" in problems(f"clusters: {{a: {keys}}}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("eps.yaml", "- http://h\n- {url: 'https://g', name: gpu, weight: 2}\n"),
        ("eps.json", '[\n\t"http:\\/\\/h",\n\t{"url":"https://g", "name":"gpu",\t"weight":2}\n]'),
    ],
)
def test_a_file_of_endpoints_is_read(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    (in_place,) = cluster("").endpoints
    assert load_endpoints(path, "a") == (in_place, Endpoint("gpu", "https", "g", 443, 2))


def test_an_empty_list_of_endpoints_is_one(tmp_path: Path) -> None:
    path = tmp_path / "eps.yaml"
    path.write_text("[]")
    assert load_endpoints(path, "a") == ()


def test_variables_are_filled_in_a_file_of_endpoints_too(tmp_path: Path) -> None:
    path = tmp_path / "eps.yaml"
    path.write_text("- http://${HOST}:80\n")
    assert load_endpoints(path, "a", env={"HOST": "h"}) == cluster("").endpoints


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [": the file is empty; expected a list of endpoints"]),
        ("a: b", [":1: expected a list, got a mapping"]),
        (
            "[",
            [
                ":1: not valid YAML: while parsing a flow node, expected the node content,"
                " but found '<stream end>'"
            ],
        ),
        (
            "- http://h\n- {url: http://g, wait: 5}\n- url: http://i\n  weight: 0\n",
            [
                ":2: [1].wait: unknown key; did you mean 'weight'?"
                " valid keys: draining, max_in_flight, models, name, url, weight",
                ":4: [2].weight: 0 is not more than 0 and at most 1000",
            ],
        ),
        (
            "- {url: http://h, name: x}\n- {url: http://g, name: x}",
            [":2: [1].name: the name 'x' belongs to [0] already"],
        ),
        ("- http://h\n- http://h", [":2: [1]: the same URL as endpoint 'a-4781ba7aa4cc' of this cluster"]),
        ("- dns+http://h", [":1: [0]: DNS names go into the configuration, not into this file"]),
    ],
)
def test_a_wrong_file_of_endpoints_is_told(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "eps.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_endpoints(path, "a")
    assert caught.value.lines() == [f"{path}{line}" for line in expected]


def test_a_missing_file_of_endpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file"):
        load_endpoints(tmp_path / "eps.yaml", "a")


def test_the_example_of_all_options_holds_the_defaults() -> None:
    loaded = load(ALL_OPTIONS, env={})
    llama, qwen = loaded.clusters.values()
    assert (llama.health, llama.metrics) == (HealthConfig(), MetricsConfig())
    assert qwen.health == HealthConfig(checks=ChecksConfig())
    assert (loaded.drain_timeout_s, loaded.expose_decision) == (30, False)
    assert {(route.retry, route.timeouts) for route in loaded.routes} == {(RetryConfig(), Timeouts())}


@pytest.mark.parametrize("block", [HealthConfig, ChecksConfig, RetryConfig])
def test_the_example_of_all_options_names_every_key(block: type[Any]) -> None:
    text = ALL_OPTIONS.read_text()
    for field in dataclasses.fields(block):
        assert f"  {field.name}:" in text
