"""The scraper's threads: where none can be had, and at the end of the process."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest

from tests.core.site import PAGE, Site, response, says
from tests.core.test_scraper import Desk
from tests.waiting import until


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    desk.scraper.start(asyncio.get_running_loop())
    yield desk
    desk.scraper.stop()


@pytest.mark.parametrize("refused", ["scraper", "scraper_"])
async def test_threads_that_cannot_be_started_are_told_once_and_tried_again(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    caplog.set_level(logging.INFO)
    desk.scraper.stop()
    start, left = threading.Thread.start, [1, 2, 3]

    def no_more(thread: threading.Thread) -> None:
        if thread.name.startswith(refused) and left:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)
    monkeypatch.setattr("lb_core.engines.scraper._AGAIN_S", 0.01)
    async with Site(says(response(PAGE))) as site:
        desk.scraper.set_targets([site.target("a")])
        desk.scraper.start(asyncio.get_running_loop())
        await until(lambda: len(desk.of("a")) >= 3)
    told = [record.levelname for record in caplog.records if record.name == "lb_core.engines.crew"]
    assert told == ["ERROR", "INFO"]


async def test_one_thread_does_the_work_of_those_that_cannot_be_started(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Site(says(response(PAGE))) as site:
        desk.scraper.set_targets([site.target("a")])
        await until(lambda: desk.of("a"))

        def no_more(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", no_more)
        desk.scraper.set_targets([site.target(f"a{number}") for number in range(9)])
        await until(lambda: len({scrape.endpoint for scrape in desk.scrapes}) == 10)
        monkeypatch.undo()


async def test_a_scraper_that_is_stopped_does_not_begin_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("lb_core.engines.scraper._AGAIN_S", 0.01)
    desk = Desk()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        desk.scraper.start(asyncio.get_running_loop())
        desk.scraper.stop()
    await asyncio.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "scraper"]


HANGS = """
import asyncio, socket, time
from lb_core.engines.scraper import Scraper, Target

asked = asyncio.Event()
loop = asyncio.new_event_loop()

def hang(*_, **__):
    loop.call_soon_threadsafe(asked.set)
    time.sleep(600)

socket.getaddrinfo = hang

async def main():
    scraper = Scraper(print)
    scraper.set_targets([Target("a", "http://engine.test/metrics", interval_s=0.1)])
    scraper.start(loop)
    await asked.wait()
    scraper.stop()

loop.run_until_complete(main())
"""


def test_the_end_of_the_process_does_not_wait_for_a_resolver_that_hangs() -> None:
    subprocess.run([sys.executable, "-c", HANGS], check=True, timeout=100)
