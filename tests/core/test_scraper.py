"""The scraper against real sockets: whatever a page does, the others are on time."""

import asyncio
import gzip
import itertools
import logging
import ssl
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import certs

from lb_core.engines.model import Scrape
from lb_core.engines.scraper import Scraper, Target
from lb_core.trust import trusting
from tests.core.site import PAGE, Answer, Site, drips, hangs, response, says
from tests.waiting import until


class Desk:
    """A scraper at work and what it delivered."""

    def __init__(self) -> None:
        self.scrapes: list[Scrape] = []
        self.threads: set[int] = set()
        self.scraper = Scraper(self._take)

    def _take(self, scrape: Scrape) -> None:
        self.threads.add(threading.get_ident())
        self.scrapes.append(scrape)

    def of(self, name: str) -> list[Scrape]:
        return [scrape for scrape in self.scrapes if scrape.endpoint == name]


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    desk.scraper.start(asyncio.get_running_loop())
    yield desk
    desk.scraper.stop()


BAD: dict[str, tuple[Answer, str]] = {
    "404": (says(response(b"no", "404 Not Found")), "HTTP 404"),
    "500": (says(response(PAGE, "500 Internal Server Error")), "HTTP 500"),
    "204": (says(b"HTTP/1.1 204 No Content\r\n\r\n"), "HTTP 204"),
    "redirect": (says(response(PAGE, "302 Found", "Location: http://127.0.0.1:9/x")), "HTTP 302"),
    "html": (says(response(b"<html>Log in</html>")), "a page without any metric that is known"),
    "empty": (says(response(b"")), "a page without any metric that is known"),
    "not http": (says(b"SSH-2.0-OpenSSH\r\n\r\n"), "no connection"),
    "no length": (says(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), ""),
    "bad chunk": (says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), ""),
    "broken gzip": (says(response(b"junk", "200 OK", "Content-Encoding: gzip")), "a body that cannot"),
    "brotli": (says(response(PAGE, "200 OK", "Content-Encoding: br")), "an encoding"),
    "hang": (hangs, "no answer in time"),
    "endless": (drips(b"HTTP/1.1 200 OK\r\n\r\n", b"x 1\n" * 16_384, 0), "too large"),
    "endless headers": (drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 50, 0), ""),
    "dripping body": (drips(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.05), "no answer in time"),
    "dripping headers": (drips(b"HTTP/1.1 200 OK\r\n", b"X", 0.05), "no answer in time"),
    "dripping chunks": (
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.05),
        "no answer in time",
    ),
}


async def test_pages_come_on_the_loops_thread_with_their_times(desk: Desk) -> None:
    async with Site(says(response(PAGE))) as site:
        before = time.perf_counter()
        desk.scraper.set_targets([site.target("a", headers={"Authorization": "Bearer secret"})])
        await until(lambda: len(desk.of("a")) >= 5)
        metrics = desk.of("a")[0].metrics
        assert metrics is not None
        assert (metrics.waiting, metrics.running) == (3, 1)
        assert before <= metrics.at <= time.perf_counter()
        assert desk.threads == {threading.get_ident()}
        assert site.connections == 1, "the connection is kept"
        assert "authorization: bearer secret" in site.asked[0][1].lower()
        gaps = [after[0] - first[0] for first, after in zip(site.asked, site.asked[1:], strict=False)]
        assert len(set(gaps)) > 1
        assert 0.05 < sum(gaps) / len(gaps) < 0.2


@pytest.mark.parametrize("name", sorted(BAD))
async def test_what_is_no_page_ends_in_time_with_a_reason(desk: Desk, name: str) -> None:
    answer, reason = BAD[name]
    async with Site(answer) as site:
        desk.scraper.set_targets([site.target("a", timeout_s=0.4)])
        await until(lambda: bool(desk.of("a")))
        scrape = desk.of("a")[0]
        assert scrape.metrics is None
        assert scrape.error
        assert scrape.error.startswith(reason)
        assert scrape.took_s < 4


async def test_a_refused_connection_is_no_page(desk: Desk) -> None:
    desk.scraper.set_targets([Target("a", "http://127.0.0.1:1/metrics", interval_s=0.1)])
    await until(lambda: bool(desk.of("a")))
    assert desk.of("a")[0].error == "no connection"


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_name_with_a_given_address_is_asked_there_under_its_name(
    desk: Desk, tmp_path: Path, scheme: str
) -> None:
    named: list[str | None] = []
    tls = None
    if scheme == "https":
        store = certs.CertStore.from_store(tmp_path, "ca", 2048)
        chain = tmp_path / "chain.pem"
        chain.write_bytes(
            store.get_cert("engine.test", []).cert.to_pem() + (tmp_path / "ca-ca.pem").read_bytes()
        )
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(chain, tmp_path / "ca-ca.pem")
        tls.sni_callback = lambda _, name, __: named.append(name)
    async with Site(says(response(PAGE)), tls=tls) as site:
        url = f"{scheme}://engine.test:{site.port}/metrics"
        desk.scraper.set_targets(
            [Target("a", url, address="127.0.0.1", interval_s=0.1, timeout_s=3, tls=trusting(insecure=True))]
        )
        await until(lambda: bool(desk.of("a")))
        assert desk.of("a")[0].metrics is not None
        assert f"host: engine.test:{site.port}\r\n" in site.asked[0][1].lower()
        assert set(named) <= {"engine.test"}
        assert bool(named) is (tls is not None)


async def test_compressed_pages_are_read_and_bombs_are_not(desk: Desk) -> None:
    bomb = gzip.compress(b"x 1\n" * (25 << 20))  # 100 MB decoded
    async with (
        Site(says(response(gzip.compress(PAGE), "200 OK", "Content-Encoding: gzip"))) as good,
        Site(says(response(bomb, "200 OK", "Content-Encoding: gzip"))) as bad,
    ):
        tracemalloc.start()
        desk.scraper.set_targets([good.target("good"), bad.target("bad", timeout_s=2)])
        await until(lambda: bool(desk.of("good") and desk.of("bad")))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert desk.of("good")[0].metrics is not None
        assert desk.of("bad")[0].error == "too large"
        assert peak < 20 << 20


async def test_any_number_of_bad_pages_delays_no_good_one(desk: Desk) -> None:
    """Each bad sort, and more that hang than there are threads."""
    async with AsyncExitStack() as stack:
        good = [await stack.enter_async_context(Site(says(response(PAGE)))) for _ in range(5)]
        bad = [
            await stack.enter_async_context(Site(answer))
            for answer in [*(answer for answer, _ in BAD.values()), *[hangs] * 16]
        ]
        targets = [site.target(f"bad-{n}") for n, site in enumerate(bad)]
        targets += [site.target(f"good-{n}", interval_s=0.2) for n, site in enumerate(good)]
        desk.scraper.set_targets(targets)
        # Each bad page may hold a thread once, before it is known for one.
        await until(
            lambda: {f"bad-{n}" for n in range(len(bad))} <= {s.endpoint for s in desk.scrapes}, within_s=20
        )
        desk.scrapes.clear()
        await until(lambda: len(desk.of("good-0")) >= 12)
        for number in range(len(good)):
            times = [scrape.at for scrape in desk.of(f"good-{number}")]
            gaps = [after - first for first, after in itertools.pairwise(times)]
            assert max(gaps) < 0.2 * 1.1 + 0.1
            assert all(scrape.metrics for scrape in desk.of(f"good-{number}"))


async def test_an_endpoint_that_recovers_is_read_again(desk: Desk) -> None:
    async with Site(hangs) as site:
        desk.scraper.set_targets([site.target("a", timeout_s=0.2)])
        await until(lambda: bool(desk.of("a")))
        site.answer = says(response(PAGE))
        await until(lambda: desk.scrapes[-1].metrics is not None)


async def test_targets_can_be_changed_while_it_runs(desk: Desk) -> None:
    async with Site(says(response(PAGE))) as first, Site(hangs) as slow, Site(says(response(PAGE))) as second:
        kept = first.target("kept")
        desk.scraper.set_targets([kept, slow.target("gone", timeout_s=5)])
        await until(lambda: bool(desk.of("kept") and slow.asked))
        desk.scraper.set_targets([kept, second.target("new"), second.target("gone")])
        await until(lambda: bool(desk.of("new") and desk.of("gone")))
        assert first.connections == 1, "what stays as it was keeps its connection"
        assert all(scrape.metrics for scrape in desk.scrapes), "a visit that is not wanted is not told"


async def test_a_page_that_left_is_left(desk: Desk) -> None:
    async with Site(says(response(PAGE))) as site:
        desk.scraper.set_targets([site.target("a")])
        await until(lambda: bool(desk.of("a")))
        assert site.open == 1
        desk.scraper.set_targets([])
        await until(lambda: site.open == 0, within_s=2)
        count = len(site.asked)
        await asyncio.sleep(0.3)
        assert len(site.asked) == count


async def test_a_page_that_moved_is_left(desk: Desk) -> None:
    async with Site(says(response(PAGE))) as before, Site(says(response(PAGE))) as after:
        desk.scraper.set_targets([before.target("a")])
        await until(lambda: bool(before.asked))
        desk.scraper.set_targets([after.target("a")])
        await until(lambda: bool(after.asked) and before.open == 0, within_s=2)
        count = len(before.asked)
        await asyncio.sleep(0.3)
        assert len(before.asked) == count


async def test_the_connection_to_a_page_that_failed_is_closed(desk: Desk) -> None:
    async with Site(says(response(b"<html>Log in</html>"))) as site:
        desk.scraper.set_targets([site.target("a", interval_s=2)])
        await until(lambda: bool(desk.of("a")), within_s=30)
        await until(lambda: site.open == 0, within_s=2)


async def test_its_thread_has_ended_when_it_is_stopped() -> None:
    desk = Desk()
    desk.scraper.start(asyncio.get_running_loop())
    desk.scraper.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "scraper"]


async def test_it_stops_at_once_while_pages_hang() -> None:
    desk = Desk()
    async with Site(hangs) as site:
        desk.scraper.set_targets([site.target(f"a{n}", timeout_s=30) for n in range(20)])
        desk.scraper.start(asyncio.get_running_loop())
        await until(lambda: len(site.asked) >= 12)
        began = time.monotonic()
        desk.scraper.stop()
        assert time.monotonic() - began < 10
        await until(
            lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("scraper")],
            within_s=2,
        )
        assert desk.scrapes == []


async def test_nothing_of_a_page_or_a_header_is_logged(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hunter2"  # in headers that urllib3 cannot read and warns about
    odd = response(PAGE + secret.encode(), "200 OK", f"no colon {secret}", f"X: {secret}")
    async with Site(says(odd)) as site:
        desk.scraper.set_targets([site.target("a", headers={"X-Key": secret})])
        await until(lambda: bool(desk.of("a")))
    assert secret not in caplog.text
    assert secret not in repr(desk.scrapes) + repr(site.target("a", headers={"X-Key": secret}))


@pytest.mark.parametrize(
    "options",
    [
        {"dialect": "vlm"},
        {"headers": {"X": "hunter2\r\nY: z"}},
        {"headers": {"X\n": "hunter2"}},
        {"url": "nowhere"},
    ],
)
def test_a_target_that_cannot_be_asked_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dialect|not an http URL") as caught:
        Target(**{"endpoint": "a", "url": "http://127.0.0.1:1/metrics"} | options)
    assert "hunter2" not in str(caught.value)


async def test_a_closed_loop_is_no_error() -> None:
    desk = Desk()
    loop = asyncio.new_event_loop()
    loop.close()
    desk.scraper.set_targets([Target("a", "http://127.0.0.1:1/metrics", interval_s=0.01)])
    desk.scraper.start(loop)
    await until(lambda: not [t for t in threading.enumerate() if t.name == "scraper"])
    desk.scraper.stop()
