"""A balancer in a process of its own, as users run it."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
ADDON = ROOT / "addons" / "ai_lb.py"
BIN = Path(sys.executable).parent

_START_S = 30.0


class Balancer:
    """`mitmdump -s addons/ai_lb.py` with a configuration; `with` starts and stops it."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *arguments: str,
        program: str = "mitmdump",
        script: Path = ADDON,
        serves: bool = True,
    ) -> None:
        self._ports_to_open = ["port", "metrics_port"] if serves else ["metrics_port"]
        self.port = free_port()
        self.metrics_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / f"balancer-{self.port}.log"
        self.config_path = folder / f"ai_lb-{self.port}.yaml"
        self.listening = {
            "listen": f"127.0.0.1:{self.port}",
            "metrics_listen": f"127.0.0.1:{self.metrics_port}",
        }
        self.config_path.write_text(yaml.safe_dump({**self.listening, **config}))
        confdir = folder.parent / "mitmproxy"
        self.command = [
            str(BIN / program),
            *("-s", str(script)),
            *("--set", f"ai_lb_config={self.config_path}"),
            *("--set", f"confdir={confdir}"),
            *arguments,
        ]
        self.terminal: int | None = None
        """A pseudo-terminal for a program that needs one; its log stays empty then."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait until it serves."""
        with self.log_path.open("wb") as log:
            output = log if self.terminal is None else self.terminal
            stdin = subprocess.DEVNULL if self.terminal is None else self.terminal
            # Where Python keeps back no output by itself, nobody would notice if the balancer did.
            env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
            self.process = subprocess.Popen(self.command, stdin=stdin, stdout=output, stderr=output, env=env)
        wait_until(self._serves, within_s=_START_S, what="the balancer serves")
        return self

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return all(_open(getattr(self, name)) for name in self._ports_to_open)

    def stop(self, sent: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; gives the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(sent)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log(self) -> str:
        """What it printed so far."""
        return self.log_path.read_text(errors="replace")

    def samples(self, name: str, **labels: str) -> list[float]:
        """The samples of one metric that have these labels."""
        page = requests.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5).text
        return [
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def metric(self, name: str, **labels: str) -> float:
        """Their sum."""
        return sum(self.samples(name, **labels))

    def memory_mb(self) -> float:
        """What the process has in memory now (resident set)."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / (1 << 20)

    def in_flight(self) -> int:
        """Requests placed and not finished, over all endpoints."""
        return int(self.metric("ai_lb_in_flight"))


class Engines:
    """Simulated engines in a process of their own; `truth()` is what really happened there."""

    def __init__(self, count: int = 3, *arguments: str) -> None:
        self.ports = [free_port() for _ in range(count)]
        self.names = [f"sim-{number + 1}" for number in range(count)]
        ports = ",".join(map(str, self.ports))
        self._command = [sys.executable, "-m", "addons.sim_engines", "--ports", ports, *arguments]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, cwd=ROOT, env=env)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(timeout=20)

    def endpoints(self, **extra: Any) -> list[dict[str, Any]]:
        """The endpoints of a cluster of all engines."""
        return [
            {"name": name, "url": f"http://127.0.0.1:{port}", **extra}
            for name, port in zip(self.names, self.ports, strict=True)
        ]

    def truth(self) -> dict[str, dict[str, Any]]:
        """For each engine: open, total, peak, finished, aborted."""
        answer = requests.get(f"http://127.0.0.1:{self.ports[0]}/admin/truth", timeout=5).json()
        engines: dict[str, dict[str, Any]] = answer["engines"]
        return engines

    def fault(self, name: str, fault: str, **parameters: Any) -> None:
        """Switch a fault of one engine."""
        body = {"engine": name, "fault": fault, **parameters}
        answer = requests.post(f"http://127.0.0.1:{self.ports[-1]}/admin/fault", json=body, timeout=5)
        answer.raise_for_status()


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
