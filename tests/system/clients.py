"""Clients that keep account of what they saw, and what must be true of a balancer afterwards."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from tests.system.balancer import Balancer
from tests.waiting import wait_until

PATH = b"/v1/chat/completions"
QUICK = ("--ttft", "0.03", "--tpot", "0.005", "--max-num-seqs", "200")
"""Arguments of engines that answer in less than a tenth of a second."""
PATIENT: dict[str, Any] = {"retry": {"connect_timeout_s": 10}}
"""For tests of something else: on a busy machine connecting may take more than the default of a second."""


def request(*, stream: bool = True, tokens: int = 10, path: bytes = PATH) -> bytes:
    """A chat request on a connection of its own."""
    body = (
        b'{"model":"sim","stream":%s,"max_tokens":%d,"messages":[{"role":"user","content":"one two three"}]}'
        % (b"true" if stream else b"false", tokens)
    )
    head = b"POST %s HTTP/1.1\r\nhost: lb.test\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return head % (path, len(body)) + body


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client saw of one request. `began` and `took_s` are seconds of the event loop's clock."""

    began: float
    took_s: float
    raw: bytes = field(repr=False)
    reset: bool = False

    @property
    def status(self) -> int:
        """0 where there was no response at all."""
        return int(self.raw.split(b" ", 2)[1]) if self.raw.startswith(b"HTTP/1.1 ") else 0

    @property
    def head(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").lower().split("\r\n")[1:]
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def attempts(self) -> int:
        """How many engines were asked."""
        return int(self.head.get("x-ai-lb-attempts", "1"))

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def is_stream(self) -> bool:
        return self.head.get("content-type", "").startswith("text/event-stream")

    @property
    def whole(self) -> bool:
        """The body ends as HTTP says, and a stream as its API says."""
        if self.reset or not self.status:
            return False
        if (length := self.head.get("content-length")) is not None:
            return len(self.body) == int(length)
        return self.body.endswith(b"0\r\n\r\n") and (not self.is_stream or b"data: [DONE]" in self.body)

    @property
    def outcome(self) -> str:
        """`ok`, `cut` for a stream that had begun, else the status, with what is wrong beside it."""
        if b'data: {"error"' in self.raw:
            return f"{self.status} error event"
        if self.status == 200 and self.whole:
            return "ok"
        if self.status == 200 and self.is_stream:
            return "cut"
        return f"{self.status}{'' if self.whole else ' incomplete'}"


async def ask(port: int, raw: bytes, *, within_s: float = 60.0) -> Seen:
    """One request, to its end."""
    loop = asyncio.get_running_loop()
    began, got, reset = loop.time(), b"", False
    async with asyncio.timeout(within_s):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return Seen(began, loop.time() - began, b"", reset=True)
        try:
            writer.write(raw)
            while piece := await reader.read(65536):
                got += piece
        except ConnectionError:
            reset = True
        finally:
            writer.close()
    return Seen(began, loop.time() - began, got, reset)


class Clients:
    """Requests at a rate, two of three streamed; `seen` is what became of them."""

    def __init__(
        self,
        balancer: Balancer,
        *,
        per_s: float = 50.0,
        tokens: int = 10,
        patience_s: float = 60.0,
        seed: int = 1,
    ) -> None:
        self.seen: list[Seen] = []
        self._port = balancer.port
        self._per_s = per_s
        self._tokens = tokens
        self._patience_s = patience_s
        self._dice = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._arrivals = asyncio.create_task(self._arrive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._arrivals.cancel()
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    async def _arrive(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = asyncio.create_task(self._one(self._dice.random() < 2 / 3))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            due += self._dice.expovariate(self._per_s)
            await asyncio.sleep(due - loop.time())

    async def _one(self, stream: bool) -> None:
        asked = request(stream=stream, tokens=self._tokens)
        self.seen.append(await ask(self._port, asked, within_s=self._patience_s))

    def outcomes(self) -> Counter[str]:
        return Counter(each.outcome for each in self.seen)

    def p(
        self,
        quantile: float,
        *,
        since: float = 0.0,
        until: float = float("inf"),
        attempts: float = float("inf"),
    ) -> float:
        """A quantile of the seconds that whole answers took.

        Of requests that began within these times and had so many attempts at most.
        """
        took = sorted(
            each.took_s for each in self.seen if since <= each.began < until and each.attempts <= attempts
        )
        return took[min(len(took) - 1, int(len(took) * quantile))]


@asynccontextmanager
async def served(balancer: Balancer) -> AsyncIterator[Balancer]:
    """The balancer before engines that live in this test's own loop, which must not be blocked."""
    await asyncio.to_thread(balancer.start)
    try:
        yield balancer
    finally:
        await asyncio.to_thread(balancer.stop)


def settings(
    endpoints: list[dict[str, Any]],
    health: dict[str, Any] | None = None,
    *,
    pages: bool = True,
    **more: Any,
) -> Any:
    """One cluster, least request. Without `pages` the engines hear of clients alone."""
    cluster: dict[str, Any] = {"endpoints": endpoints, "metrics": pages}
    if health:
        cluster["health"] = health
    return {
        "clusters": {"engines": cluster},
        "lb_policy": "global_least_request",
        "lb_config": {},
        "expose_decision": True,
        **more,
    }


def and_nothing_is_left(balancer: Balancer) -> None:
    """No request is counted, and no fault of the addon was seen."""
    wait_until(lambda: balancer.in_flight() == 0, within_s=3, what="no request is counted")
    assert balancer.metric("ai_lb_hook_errors_total") == 0
    log = balancer.log()
    assert "Traceback" not in log
    assert "crashed" not in log


def ejections(balancer: Balancer) -> float:
    return balancer.metric("ai_lb_health_changes_total", state="ejected")
