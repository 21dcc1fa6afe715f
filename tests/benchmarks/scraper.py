"""What the scraper costs: `python -m tests.benchmarks.scraper`.

One process serves a real page of vLLM (53 kB) under as many names as there are endpoints; this one visits
each of them once in `--interval` seconds and meanwhile decides, as a balancer would, at a steady rate.
Measured are the processor time of the scraper's threads, the time that a decision takes, and how late the
event loop is (a decision waits that much longer), with and without the scraper.
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from lb_core.engines.board import Board
from lb_core.engines.model import Scrape
from lb_core.engines.scraper import Scraper, Target
from lb_core.policies.endpoint_metrics import EndpointMetrics
from lb_core.types import Choice, Snapshot
from tests.core.build import endpoints, request

PAGE = (Path(__file__).parents[1] / "data" / "metrics" / "vllm-loaded.txt").read_bytes()
PER_SECOND = 200


class _Page(asyncio.Protocol):
    """Answers every request with the page, and keeps the connection."""

    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(PAGE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.write(self.head + PAGE)  # type: ignore[attr-defined]


def _serve(count: int, ready: Connection) -> None:
    async def forever() -> None:
        loop = asyncio.get_running_loop()
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        ready.send([sock.getsockname()[1] for sock in sockets])
        for sock in sockets:
            await loop.create_server(_Page, sock=sock)
        await loop.create_future()

    asyncio.run(forever())


@contextmanager
def _servers(count: int) -> Iterator[list[int]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(count, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


async def _decide(board: Board, count: int, seconds: float) -> tuple[list[float], list[float]]:
    """Decisions at a steady rate: the seconds that each took, and how late each began."""
    policy, members = EndpointMetrics(), endpoints(count)
    choices, names = tuple(Choice(member) for member in members), [member.name for member in members]
    took, late = [], []
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for number in range(int(seconds * PER_SECOND)):
        due = begin + number / PER_SECOND
        await asyncio.sleep(max(due - loop.time(), 0))
        started = loop.time()
        late.append(max(started - due, 0))
        snapshot = Snapshot("c", choices, {}, number, metrics=board.observations(names))
        policy.decide(request(number=number), snapshot)
        took.append(loop.time() - started)
    return took, late


def _line(name: str, seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=1000)
    return (
        f"  {name:9} p50 {cuts[499] * 1e3:6.3f}  p99 {cuts[989] * 1e3:6.3f}  max {max(seconds) * 1e3:6.3f} ms"
    )


def _thread_seconds(thread_id: int) -> float:
    """Processor time of one thread of this process (Linux)."""
    return time.clock_gettime(time.pthread_getcpuclockid(thread_id))


async def _measure(count: int, interval_s: float, seconds: float) -> None:
    # Without the scraper the pages grow old; the tree shall have the same work then.
    board = Board(clock=time.perf_counter, stale_after_s=3600)
    arrived: list[Scrape] = []

    def deliver(scrape: Scrape) -> None:
        arrived.append(scrape)
        board.take(scrape)

    with _servers(count) as ports:
        scraper = Scraper(deliver)
        scraper.set_targets(
            Target(f"e{number}", f"http://127.0.0.1:{port}/metrics", interval_s=interval_s)
            for number, port in enumerate(ports)
        )
        scraper.start(asyncio.get_running_loop())
        await asyncio.sleep(2 * interval_s + 1)
        arrived.clear()
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("scraper")]
        before, began = sum(_thread_seconds(thread.ident or 0) for thread in threads), time.perf_counter()
        busy = await _decide(board, count, seconds)
        spent = sum(_thread_seconds(thread.ident or 0) for thread in threads) - before
        elapsed = time.perf_counter() - began
        visits, failed = len(arrived), sum(scrape.metrics is None for scrape in arrived)
        scraper.stop()
        idle = await _decide(board, count, seconds)
    print(f"{count} endpoints every {interval_s:g} s, pages of {len(PAGE)} bytes")
    print(
        f"  {visits / elapsed:.1f} visits/s, {failed} failed; threads {spent / elapsed:.1%} of a core,"
        f" {spent / visits * 1e3:.3f} ms a visit"
    )
    for title, (took, late) in (("with the scraper", busy), ("without", idle)):
        print(f" {title}")
        print(_line("decision", took))
        print(_line("lateness", late))
    added = statistics.quantiles(busy[0], n=100)[98] - statistics.quantiles(idle[0], n=100)[98]
    print(f"  added to the p99 of a decision: {added * 1e3:+.3f} ms")


def main() -> None:
    """Run it; see --help."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    asyncio.run(_measure(options.endpoints, options.interval, options.seconds))


if __name__ == "__main__":
    main()
