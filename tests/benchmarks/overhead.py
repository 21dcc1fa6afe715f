"""What the balancer costs: `python -m tests.benchmarks.overhead [--rounds N]`.

In alternation, on one machine: a client directly at a fast server, bare mitmdump before it (reverse mode,
an addon of three lines that streams SSE), and this balancer before it. CPU is the proxy process's own, from
the operating system; ratios are of the medians over the rounds. Last, a decision alone, in this process.
"""

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from lb_core import record
from lb_core.balancer import Balancer
from lb_core.config import loads
from lb_core.request import parse, session_of
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome
from tests.benchmarks.fast_server import CHUNKS
from tests.system.balancer import ADDON, BIN, ROOT
from tests.waiting import free_port, wait_until

BARE_ADDON = """\
def responseheaders(flow):
    flow.response.stream = flow.response.headers.get("content-type", "").startswith("text/event-stream")
"""
BODY = b'{"model":"sim","messages":[{"role":"user","content":"%s"}],"stream":false}' % (b"word " * 25)
STREAMS = 64
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one case: exchanges per second, latencies in seconds, CPU seconds of the proxy."""

    rate: float
    median_s: float
    p99_s: float
    cpu_s: float


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


@contextmanager
def running(command: list[str], port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process, stopped at the end; waits until `port` serves."""
    pipe = subprocess.PIPE if port is None else subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=pipe, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        if port is not None:
            wait_until(lambda: _connects(port), within_s=30, what=f"{command[0]} serves")
            time.sleep(1)  # until the listener that mitmproxy opens first was replaced
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def _connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def json_load(port: int, connections: int, total: int) -> list[float]:
    """`total` small requests over `connections` connections; gives the latency of each."""
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    request += b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
    latencies: list[float] = []

    async def client(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(client(total // connections) for _ in range(connections)))
    return latencies


async def sse_load(port: int, streams: int) -> list[float]:
    """`streams` streams at once; gives for each the time to its end."""
    request = b"POST /sse HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    request += b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    async def client() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started = time.perf_counter()
        writer.write(request)
        await reader.readuntil(b"[DONE]\n\n")
        await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        return time.perf_counter() - started

    return list(await asyncio.gather(*(client() for _ in range(streams))))


def measured(load: Callable[[], list[float]], pid: int) -> Sample:
    """Run a load and take the proxy's CPU before and after."""
    cpu, started = cpu_s(pid), time.perf_counter()
    latencies = sorted(load())
    elapsed = time.perf_counter() - started
    return Sample(
        rate=len(latencies) / elapsed,
        median_s=statistics.median(latencies),
        p99_s=latencies[int(len(latencies) * 0.99)],
        cpu_s=cpu_s(pid) - cpu,
    )


def proxies(rounds: int, requests: int) -> None:
    """Measure the three variants in alternation and print the table."""
    samples: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running([sys.executable, "-m", "tests.benchmarks.fast_server"]))
        assert server.stdout is not None
        backend = int(server.stdout.readline())
        ports = {"direct": backend, "bare": free_port(), "ai-lb": free_port()}
        (folder / "bare.py").write_text(BARE_ADDON)
        config = {
            "listen": f"127.0.0.1:{ports['ai-lb']}",
            "clusters": {"c": {"endpoints": [f"http://127.0.0.1:{backend}"]}},
            "lb_policy": "global_least_request",
            "lb_config": {},
        }
        (folder / "ai_lb.yaml").write_text(yaml.safe_dump(config))
        mitmdump = [str(BIN / "mitmdump"), "-q", "--set", f"confdir={folder}"]
        mode = f"reverse:http://127.0.0.1:{backend}@127.0.0.1:{ports['bare']}"
        bare = [*mitmdump, "-s", str(folder / "bare.py"), "--mode", mode]
        ours = [*mitmdump, "-s", str(ADDON), "--set", f"ai_lb_config={folder / 'ai_lb.yaml'}"]
        pids = {
            "direct": server.pid,
            "bare": stack.enter_context(running(bare, ports["bare"])).pid,
            "ai-lb": stack.enter_context(running(ours, ports["ai-lb"])).pid,
        }
        for number in range(rounds):
            order = ["direct", "bare", "ai-lb"] if number % 2 else ["ai-lb", "bare", "direct"]
            for name in order:
                for connections in (1, 16, 64):
                    total = requests // 4 if connections == 1 else requests

                    def load(
                        name: str = name, connections: int = connections, total: int = total
                    ) -> list[float]:
                        return asyncio.run(json_load(ports[name], connections, total))

                    samples[f"json c={connections}", name].append(measured(load, pids[name]))

                def streams(name: str = name) -> list[float]:
                    return asyncio.run(sse_load(ports[name], STREAMS))

                samples[f"{STREAMS} streams", name].append(measured(streams, pids[name]))
        _print(samples, {name: peak_mb(pid) for name, pid in pids.items()}, requests)


def _print(samples: dict[tuple[str, str], list[Sample]], peaks: dict[str, float], requests: int) -> None:
    def middle(case: str, name: str, field: str) -> float:
        return float(statistics.median(getattr(sample, field) for sample in samples[case, name]))

    titles = f"{'case':12} {'variant':8} {'per s':>8} {'median ms':>10} {'p99 ms':>8} {'added ms':>9}"
    print(f"{titles} {'CPU':>28} {'ratio':>6}")
    for case in dict.fromkeys(case for case, _ in samples):
        bare_cpu = middle(case, "bare", "cpu_s")
        for name in ("direct", "bare", "ai-lb"):
            done = requests // 4 if case == "json c=1" else requests
            cpu = middle(case, name, "cpu_s")
            if "streams" in case:
                unit = f"{cpu * 100_000 / (STREAMS * CHUNKS):.2f} s per 100,000 chunks"
            else:
                unit = f"{cpu * 1000 / done:.3f} s per 1,000 requests"
            added = (middle(case, name, "median_s") - middle(case, "direct", "median_s")) * 1000
            ratio = f"{cpu / bare_cpu:.3f}" if name == "ai-lb" and bare_cpu else ""
            rate, median, p99 = (middle(case, name, field) for field in ("rate", "median_s", "p99_s"))
            times = f"{rate:8.1f} {median * 1000:10.2f} {p99 * 1000:8.2f} {added:9.2f}"
            print(f"{case:12} {name:8} {times} {unit:>28} {ratio:>6}")
    print("peak memory, MB:", ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))


def decisions() -> None:
    """Measure a decision in memory: read a 2 kB body, route, acquire, record, release."""
    body = b'{"model":"sim","messages":[{"role":"user","content":"%s"}]}' % (b"word " * 390)
    headers = {"host": "bench", "content-type": "application/json", "authorization": "Bearer x"}
    for count in (8, 100, 1000):
        endpoints = "".join(f"      - http://10.0.{n // 250}.{n % 250 + 1}:8000\n" for n in range(count))
        text = (
            f"lb_policy: global_least_request\nlb_config: {{}}\nclusters:\n  c:\n    endpoints:\n{endpoints}"
        )
        balancer = Runtime(loads(text)).balancer

        async def one(balancer: Balancer = balancer) -> None:
            llm = await parse("/v1/chat/completions", headers, body)
            asked = balancer.request(
                host="bench",
                path="/v1/chat/completions",
                headers=headers,
                session=session_of(headers),
                llm=llm,
            )
            placed = await balancer.route(asked, started=balancer.clock())
            record.opened(placed, host="bench")
            balancer.finish(placed, Outcome(Ending.COMPLETE, 200))

        async def many(times: int) -> list[float]:
            taken = []
            for _ in range(times):
                started = time.process_time_ns()
                await one()
                taken.append((time.process_time_ns() - started) / 1000)
            return taken

        taken = sorted(asyncio.run(many(3000)))
        median, p99 = taken[1500], taken[2970]
        print(f"decision at {count:4} endpoints: median {median:.0f} µs, p99 {p99:.0f} µs of CPU")


def main() -> None:
    """Run both parts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--requests", type=int, default=2000)
    options.add_argument("--only-decisions", action="store_true")
    chosen = options.parse_args()
    decisions()
    if not chosen.only_decisions:
        proxies(chosen.rounds, chosen.requests)


if __name__ == "__main__":
    main()
