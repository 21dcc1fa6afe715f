"""Captured traffic goes through the balancer again."""

import os
import subprocess
from pathlib import Path

import yaml
from mitmproxy import http
from mitmproxy.io import FlowReader

from tests.system.balancer import ADDON, BIN, Balancer, Engines
from tests.system.capture import CAPTURED, REQUESTS
from tests.waiting import free_port, wait_until


def flows(path: Path) -> list[http.HTTPFlow]:
    with path.open("rb") as file:
        return [flow for flow in FlowReader(file).stream() if isinstance(flow, http.HTTPFlow)]


def test_the_captured_file_holds_decisions_and_bodies() -> None:
    captured = flows(CAPTURED)
    assert len(captured) == REQUESTS
    for flow in captured:
        assert flow.metadata["ai_lb"]["outcome"]["ending"] == "complete"
        assert flow.response is not None
        assert flow.response.raw_content


def test_a_replay_is_balanced_again_and_counted_to_zero(tmp_path: Path) -> None:
    replayed = tmp_path / "replayed.mitm"
    options = ("-n", "-C", str(CAPTURED), "--set", "keepserving=true", "-w", str(replayed))
    with Engines(3) as engines:
        config = {
            "clusters": {"again": {"endpoints": engines.endpoints()}},
            # The host that the captured client asked for, which the captured request no longer says.
            "routes": [{"name": "again", "match": {"hosts": "localhost"}, "cluster": "again"}],
            "lb_policy": "round_robin",
        }
        with Balancer(tmp_path, config, *options, serves=False) as balancer:
            wait_until(
                lambda: balancer.metric("ai_lb_requests_total") == REQUESTS,
                within_s=30,
                what="everything is replayed",
            )
            assert balancer.in_flight() == 0
            assert balancer.metric("ai_lb_requests_total", ending="complete") == REQUESTS
        truth = engines.truth()
        assert [truth[name]["total"] for name in engines.names] == [REQUESTS // 3] * 3
    again = flows(replayed)
    assert len(again) == REQUESTS
    for number, flow in enumerate(again):
        record = flow.metadata["ai_lb"]
        assert (record["route"], record["policy"]) == ("again", "round_robin")
        assert record["endpoint"] == f"sim-{number % 3 + 1}"
        assert record["outcome"]["ending"] == "complete"


def test_a_replay_beside_its_own_engines_waits_until_all_is_up_and_ends_by_itself(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(2)]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    config = tmp_path / "ai_lb.yaml"
    config.write_text(yaml.safe_dump({"clusters": {"c": {"endpoints": urls, "metrics": False}}}))
    options = {
        "ai_lb_config": config,
        "sim_engines_ports": ",".join(map(str, ports)),
        "termlog_verbosity": "debug",
    }
    ended = subprocess.run(
        [
            str(BIN / "mitmdump"),
            *("-n", "-C", str(CAPTURED)),
            *("-s", str(ADDON.with_name("sim_engines.py")), "-s", str(ADDON)),
            *(f"--set={name}={value}" for name, value in options.items()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # In its own confdir: where that is given as an option, mitmproxy has its certificates early.
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    decisions = [line for line in ended.stdout.splitlines() if "(round_robin: turn)" in line]
    assert len(decisions) == REQUESTS
    assert all("complete" in line for line in decisions), ended.stdout
