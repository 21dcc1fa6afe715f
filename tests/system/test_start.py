"""How the balancer starts, and how it refuses to: with real processes, as users see it."""

import fcntl
import os
import socket
import struct
import subprocess
import termios
from pathlib import Path

import pytest
import requests
import yaml

from tests.system.balancer import ADDON, BIN, Balancer
from tests.waiting import free_port, wait_until

CLUSTER = {"clusters": {"c": {"endpoints": [{"url": "http://127.0.0.1:1", "name": "nobody"}]}}}


def ended(
    folder: Path,
    *arguments: str,
    program: str = "mitmdump",
    script: Path = ADDON,
    confdir: Path | None = None,
) -> str:
    """Start mitmproxy, which must end by itself with an error; gives all that it printed."""
    process = subprocess.run(
        [
            str(BIN / program),
            *("--set", f"confdir={confdir or folder.parent / 'mitmproxy'}"),
            *arguments,
            *("-s", str(script)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert process.returncode == 1
    return process.stdout + process.stderr


def refusal(
    folder: Path, *arguments: str, program: str = "mitmdump", confdir: Path | None = None
) -> list[str]:
    """The same; gives the lines about the balancer."""
    printed = ended(folder, *arguments, program=program, confdir=confdir)
    assert "Traceback" not in printed
    return [line.partition("ai-lb: ")[2] for line in printed.splitlines() if "ai-lb: " in line]


def written(folder: Path, text: str) -> str:
    path = folder / "ai_lb.yaml"
    path.write_text(text)
    return f"ai_lb_config={path}"


def test_all_faults_of_the_configuration_are_told_at_once(tmp_path: Path) -> None:
    chosen = written(tmp_path, f"listen: 127.0.0.1:{free_port()}\nclustrs: {{}}\nexpose_decision: perhaps\n")
    lines = refusal(tmp_path, "--set", chosen)
    assert len(lines) >= 2
    assert any(":2: clustrs: " in line and "clusters" in line for line in lines)
    assert any(":3: expose_decision: " in line for line in lines)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, "--set", "ai_lb_config=nowhere/my.yaml")
    assert "nowhere/my.yaml" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "stream_large_bodies=1m"), "stream_large_bodies sends requests on before"),
        (("--mode", "regular"), "mode regular would be an open proxy"),
        (("--mode", "regular"), "@127.0.0.1:PORT"),
        (("--mode", "socks5"), "mode socks5 would be an open proxy"),
        (("--mode", "reverse:http://127.0.0.1:9"), "names a real target"),
        (("--set", "connection_strategy=eager"), "connection_strategy must be lazy"),
        (("--set", "ai_lb_polcy=off"), "there is no option ai_lb_polcy"),
        (("--set", "ai_lb_policy=of"), "option ai_lb_policy: unknown policy 'of'"),
    ],
)
def test_what_breaks_a_balancer_is_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    chosen = written(tmp_path, f"listen: 127.0.0.1:{free_port()}\nclusters: {{c: {{endpoints: []}}}}\n")
    listen = () if "--mode" not in arguments else ("--listen-port", str(free_port()))
    (line,) = refusal(tmp_path, "--set", chosen, *arguments, *listen)
    assert words in line


def web(port: int) -> tuple[str, ...]:
    return ("--no-web-open-browser", "--set", f"web_port={port}")


@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--set", "ai_lb_config=a.yaml", "--set", "ai_lb_config=b.yaml"),
            "multiple values for ai_lb_config",
        ),
        (("--set", "ai_lb_config"), "ai_lb_config"),
        (("--set", "ai_lb_policy"), "ai_lb_policy"),
    ],
)
def test_an_option_without_one_value_leaves_no_open_proxy(
    tmp_path: Path, program: str, arguments: tuple[str, ...], words: str
) -> None:
    more = web(free_port()) if program == "mitmweb" else ()
    (line,) = refusal(tmp_path, "--listen-port", str(free_port()), *more, *arguments, program=program)
    assert words in line


def test_an_option_of_a_wrong_kind_in_mitmproxys_own_file_leaves_no_open_proxy(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("ai_lb_config: [a.yaml, b.yaml]\n")
    (line,) = refusal(tmp_path, "--listen-port", str(free_port()), confdir=tmp_path)
    assert "ai_lb_config" in line


def test_a_fault_of_another_script_s_options_leaves_no_open_proxy(tmp_path: Path) -> None:
    engines = ("-s", str(ADDON.with_name("sim_engines.py")), "--set", "sim_engines_ports")
    (line,) = refusal(tmp_path, "--listen-port", str(free_port()), *engines)
    assert "sim_engines_ports" in line


@pytest.mark.parametrize("error", ["OptionsError", "AddonHalt", "AddonManagerError"])
def test_a_load_that_fails_leaves_no_open_proxy(tmp_path: Path, error: str) -> None:
    script = tmp_path / "broken.py"
    script.write_text(
        "from mitmproxy import contentviews, exceptions\n"
        f"def add(view): raise exceptions.{error}('no views today')\n"
        "contentviews.add = add\n"
        "from addons.ai_lb import addons\n"
    )
    printed = ended(tmp_path, "--listen-port", str(free_port()), script=script)
    assert "ai-lb: the balancer does not load" in printed
    assert "no views today" in printed


def test_a_taken_listen_address_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        chosen = written(tmp_path, f"listen: 127.0.0.1:{port}\nclusters: {{c: {{endpoints: []}}}}\n")
        refusal(tmp_path, "--set", chosen)


def test_a_taken_metrics_address_is_told_with_its_key_and_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        clusters = "clusters: {c: {endpoints: []}}\n"
        chosen = written(tmp_path, f"listen: {free_port()}\nmetrics_listen: {port}\n{clusters}")
        (line,) = [line for line in refusal(tmp_path, "--set", chosen) if "metrics_listen" in line]
        assert f"127.0.0.1:{port}" in line
        assert "choose another" in line


def reached(port: int) -> list[str]:
    """The addresses of this machine on which something listens at this port."""
    found = []
    for host in ("127.0.0.1", "127.0.0.2"):
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                found.append(host)
    return found


@pytest.mark.parametrize("kind", ["a port", "a mapping", "a mode"])
def test_nothing_but_this_machine_is_listened_to_unless_asked_for(tmp_path: Path, kind: str) -> None:
    mode = ("--mode", "reverse:http://lb.invalid:1@{port}") if kind == "a mode" else ()
    balancer = Balancer(tmp_path, CLUSTER)
    balancer.command += [word.format(port=balancer.port) for word in mode]
    listening: dict[str, dict[str, object]] = {
        "a port": {"listen": balancer.port, "metrics_listen": balancer.metrics_port},
        "a mapping": {"listen": {"port": balancer.port}, "metrics_listen": {"port": balancer.metrics_port}},
        "a mode": {"metrics_listen": balancer.metrics_port},
    }
    balancer.config_path.write_text(yaml.safe_dump({**CLUSTER, **listening[kind]}))
    with balancer:
        wait_until(lambda: reached(balancer.port) == ["127.0.0.1"], "only the loopback address is open")
        assert reached(balancer.metrics_port) == ["127.0.0.1"]
        assert requests.get(balancer.url, timeout=10).status_code == 503


def test_a_mode_listens_where_it_is_told_to(tmp_path: Path) -> None:
    balancer = Balancer(tmp_path, CLUSTER)
    balancer.command += ["--mode", f"reverse:http://lb.invalid:1@0.0.0.0:{balancer.port}"]
    with balancer:
        assert reached(balancer.port) == ["127.0.0.1", "127.0.0.2"]


def test_a_taken_default_port_of_mitmproxy_does_not_matter(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        with Balancer(tmp_path, CLUSTER) as balancer:
            assert requests.get(balancer.url, timeout=10).status_code == 503
            assert "failed to listen" not in balancer.log()


def test_the_command_line_wins_over_the_configuration(tmp_path: Path) -> None:
    balancer = Balancer(tmp_path, CLUSTER)
    configured, balancer.port = balancer.port, free_port()
    balancer.command += ["--listen-port", str(balancer.port)]
    with balancer, socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", configured)) != 0


@pytest.mark.parametrize("text", [None, "[http://127.0.0.1:", "[http://127.0.0.1:1]"])
def test_a_bad_endpoints_file_prevents_no_start_and_is_taken_once_it_is_good(
    tmp_path: Path, text: str | None
) -> None:
    """Missing, broken, and one that lists again what the configuration has."""
    listed = tmp_path / "engines.yaml"
    if text is not None:
        listed.write_text(text)
    clusters = {
        "beside": {**CLUSTER["clusters"]["c"], "endpoints_file": "engines.yaml"},
        "alone": {"endpoints_file": "nowhere.yaml"},
    }
    routes = [{"cluster": "alone", "match": {"models": ["alone"]}}, {"cluster": "beside"}]
    with Balancer(tmp_path, {"clusters": clusters, "routes": routes}) as balancer:
        for name in clusters:
            told = f"Cluster {name} keeps its endpoints, its file cannot be used: "
            wait_until(lambda told=told: told in balancer.log(), told)
        assert requests.get(balancer.url, timeout=10).status_code == 503
        assert requests.get(balancer.url, timeout=10).json()["error"]["code"] != "no_endpoint", "has one"
        listed.write_text("[http://127.0.0.1:2]")
        wait_until(lambda: "Cluster beside has 2 endpoints" in balancer.log(), "the file is taken")
        assert balancer.stop() == 0
        assert "Traceback" not in balancer.log()


@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
def test_the_same_file_works_under(tmp_path: Path, program: str) -> None:
    web_port = free_port()
    more = web(web_port) if program == "mitmweb" else ()
    with Balancer(tmp_path, CLUSTER, *more, program=program) as balancer:
        assert requests.get(balancer.url, timeout=10).status_code == 503
        if more:  # it shows prompts and keys
            assert requests.get(f"http://127.0.0.1:{web_port}/flows", timeout=10).status_code == 403
        wait_until(lambda: balancer.in_flight() == 0, within_s=5, what="nothing is in flight")
        if program == "mitmdump":
            named = "ai-lb: Endpoint nobody: no metrics"
            wait_until(lambda: named in balancer.log(), "what any module says has the balancer's name")
        assert balancer.stop() == 0
        assert "Traceback" not in balancer.log()
        if program == "mitmdump":
            assert "HTTP(S) proxy" not in balancer.log(), "nobody asked for that listener"
            assert "ai-lb: cluster c has 1 endpoint\n" in balancer.log()


def test_the_commands_can_be_called_in_mitmweb_by_names_that_its_api_can_spell(tmp_path: Path) -> None:
    port = free_port()
    more = (*web(port), "--set", "web_password=open")
    with Balancer(tmp_path, CLUSTER, *more, program="mitmweb"), requests.Session() as session:
        session.headers["authorization"] = "Bearer open"
        session.headers["x-xsrftoken"] = "0a"
        session.cookies["_mitmproxy_xsrf"] = "0a"

        def call(command: str, *arguments: str) -> dict[str, object]:
            url = f"http://127.0.0.1:{port}/commands/{command}"
            answer = session.post(url, json={"arguments": arguments}, timeout=10)
            answer.raise_for_status()
            said: dict[str, object] = answer.json()
            return said

        assert call("ailb.inflight") == {"value": ["c/nobody: 0"]}
        assert call("ailb.drain", "c/nobody") == {"value": None}
        assert call("ailb.undrain", "nobody") == {"value": None}
        assert call("ailb.reload") == {"value": None}
        assert "did you mean 'c/nobody'" in str(call("ailb.drain", "somebody")["error"])


def test_the_same_file_works_under_mitmproxy_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    balancer = Balancer(tmp_path, CLUSTER, program="mitmproxy")
    balancer.terminal = terminal
    with balancer:
        assert requests.get(balancer.url, timeout=10).status_code == 503
        wait_until(lambda: balancer.in_flight() == 0, within_s=5, what="nothing is in flight")
        assert b"reverse:http://lb.invalid:1" in os.read(screen, 1 << 20)
    os.close(screen)
    os.close(terminal)
