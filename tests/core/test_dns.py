"""A DNS name that is watched, with an injected resolver; and the system's resolver, with injected answers."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from lb_core.dns import Asking, NameWatch, resolve
from tests.core.build import Clock
from tests.waiting import until

QUICK_S = 0.01


async def some_looks() -> None:
    """As long as a watch takes for at least five questions on an idle machine."""
    await asyncio.sleep(10 * QUICK_S)


class Resolver:
    """Answers what `says` holds: addresses, or an error to raise; None hangs until `late` has an answer."""

    def __init__(self) -> None:
        self.says: Collection[str] | OSError | None = ()
        self.asked = 0
        self.late: asyncio.Future[Collection[str]] | None = None

    async def __call__(self, host: str) -> Collection[str]:
        self.asked += 1
        assert host == "engines.test"
        if self.says is None:
            self.late = asyncio.get_running_loop().create_future()
            return await self.late
        if isinstance(self.says, OSError):
            raise self.says
        return self.says

    async def some_rounds(self) -> None:
        enough = self.asked + 3
        await until(lambda: self.asked >= enough)


class NameRig:
    def __init__(self) -> None:
        self.resolver = Resolver()
        self.told: list[tuple[str, ...]] = []
        self.clock = Clock()

    @asynccontextmanager
    async def watching(self, *, says: Collection[str]) -> AsyncIterator[Resolver]:
        self.resolver.says = says
        watch = NameWatch(
            "engines.test",
            self.resolver,
            lambda host, addresses: self.told.append(addresses),
            asking=Asking(interval_s=QUICK_S, timeout_s=QUICK_S),
            clock=self.clock,
            dice=lambda: 0.5,
        )
        watch.start()
        async with asyncio.timeout(5):
            await watch.asked.wait()
        yield self.resolver
        watch.stop()


@pytest.fixture
def name() -> NameRig:
    return NameRig()


async def test_addresses_are_told_sorted_and_only_when_they_change(name: NameRig) -> None:
    async with name.watching(says=["10.0.0.2", "10.0.0.1", "10.0.0.2"]) as resolver:
        await resolver.some_rounds()
        resolver.says = ["10.0.0.1", "10.0.0.2"]
        await resolver.some_rounds()
        assert name.told == [("10.0.0.1", "10.0.0.2")]
        resolver.says = ["10.0.0.3"]
        await until(lambda: name.told[1:] == [("10.0.0.3",)])


@pytest.mark.parametrize("failure", [OSError("resolver away"), None])
async def test_a_resolver_in_trouble_takes_nothing_away_and_is_logged_twice(
    name: NameRig, failure: OSError | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with name.watching(says=["10.0.0.1"]) as resolver:
        resolver.says = failure
        await until(lambda: caplog.records)
        name.clock.now += 3600
        await some_looks()
        resolver.says = ["10.0.0.2"]
        if resolver.late is not None:
            resolver.late.set_result(["10.0.0.1"])
        await until(lambda: name.told == [("10.0.0.1",), ("10.0.0.2",)])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_a_question_that_hangs_is_not_put_again_and_its_late_answer_counts(name: NameRig) -> None:
    async with name.watching(says=["10.0.0.1"]) as resolver:
        resolver.says = None
        await until(lambda: resolver.late)
        asked = resolver.asked
        await some_looks()
        assert resolver.asked == asked
        assert resolver.late is not None
        resolver.late.set_result(["10.0.0.9"])
        await until(lambda: name.told[-1] == ("10.0.0.9",))


async def test_a_name_without_addresses_keeps_the_last_ones_for_30_s(
    name: NameRig, caplog: pytest.LogCaptureFixture
) -> None:
    async with name.watching(says=["10.0.0.1"]) as resolver:
        resolver.says = []
        await resolver.some_rounds()
        name.clock.now += 29
        await resolver.some_rounds()
        resolver.says = OSError("does not count, and does not begin anew")
        await resolver.some_rounds()
        resolver.says = []
        await resolver.some_rounds()
        assert name.told == [("10.0.0.1",)]
        name.clock.now += 1
        await until(lambda: name.told == [("10.0.0.1",), ()])
    assert len(caplog.records) == 1


async def test_an_address_in_between_begins_the_30_s_anew(name: NameRig) -> None:
    async with name.watching(says=["10.0.0.1"]) as resolver:
        for _ in range(3):
            resolver.says = []
            await resolver.some_rounds()
            name.clock.now += 20
            resolver.says = ["10.0.0.1"]
            await resolver.some_rounds()
    assert name.told == [("10.0.0.1",)]


async def test_a_stopped_watch_asks_and_tells_no_more(name: NameRig) -> None:
    async with name.watching(says=["10.0.0.1"]) as resolver:
        resolver.says = None
        await until(lambda: resolver.late)
    await some_looks()
    assert resolver.late is not None
    assert resolver.late.cancelled()
    assert name.told == [("10.0.0.1",)]


# The system's resolver


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], list[str]]) -> None:
    def getaddrinfo(host: str, port: None, **_: Any) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (address, 0)) for address in answer()]

    monkeypatch.setattr("lb_core.dns.socket", SimpleNamespace(**vars(socket) | locals()))


def failing(error: Exception) -> Callable[[], list[str]]:
    def fail() -> list[str]:
        raise error

    return fail


@pytest.mark.parametrize(
    ("answer", "usable"),
    [
        (["10.0.0.1", "10.0.0.1", "fd00::1"], {"10.0.0.1"}),
        (["fd00::1", "fe80::1%eth0"], {"fd00::1", "fe80::1%eth0"}),
        (["0.0.0.0", "::"], set()),
        (["0.0.0.0", "fd00::1"], {"fd00::1"}),
    ],
)
async def test_one_address_family_is_used_and_no_address_that_leads_here(
    answer: list[str], usable: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, lambda: answer)
    assert set(await resolve("engines.test")) == usable


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA])
async def test_a_name_that_is_known_to_have_no_address_is_empty(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, failing(socket.gaierror(code, "no")))
    assert await resolve("engines.test") == ()


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_AGAIN, "later"), OSError("no"), UnicodeError("label too long")]
)
async def test_a_resolver_that_cannot_tell_is_an_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, failing(error))
    with pytest.raises(OSError, match=r"later|no|label"):
        await resolve("engines.test")


async def test_a_resolver_that_hangs_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    answering(monkeypatch, lambda: ["10.0.0.1"] if release.wait(10) else [])
    asking = asyncio.create_task(resolve("engines.test"))
    begun = time.monotonic()
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert time.monotonic() - begun < 5
    assert not asking.done()
    release.set()
    assert await asking == ("10.0.0.1",)


async def test_the_name_of_this_machine_is_resolved() -> None:
    assert "127.0.0.1" in await resolve("localhost")
