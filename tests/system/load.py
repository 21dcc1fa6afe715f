"""A client that sends streams at a rate and keeps account of every one."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Self

from tests.system.balancer import Balancer

_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: load\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


def stream_request(tokens: int, text: str = "hello") -> bytes:
    """A streamed chat request with an answer of so many tokens."""
    body = (
        f'{{"model":"sim","stream":true,"max_tokens":{tokens},'
        f'"messages":[{{"role":"user","content":"{text}"}}]}}'
    ).encode()
    return _HEAD % len(body) + body


class Load:
    """Streams at a rate through several balancers; `results` counts how they ended.

    `ok`: status 200 and `[DONE]`. `left`: this client left on purpose. `cut`: the stream broke off. Else
    the status, or `refused` when the balancer was not there. `leave` is the share that leaves, at a moment
    between 0 and `length_s`. Nothing more begins after `total`, nor while `at_once` are open.
    """

    def __init__(
        self,
        balancers: Sequence[Balancer],
        *,
        per_s: float,
        tokens: int,
        leave: float = 0.0,
        length_s: float = 1.0,
        total: int | None = None,
        at_once: int = 10_000,
        seed: int = 1,
    ) -> None:
        self.balancers = list(balancers)
        self.results: Counter[str] = Counter()
        self.by_balancer: dict[int, Counter[str]] = {balancer.port: Counter() for balancer in balancers}
        self._per_s = per_s
        self._tokens = tokens
        self._leave = leave
        self._length_s = length_s
        self._total = total
        self._room = asyncio.Semaphore(at_once)
        self._dice = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrivals: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._arrivals = asyncio.create_task(self._arrive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.rest()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def running(self) -> int:
        """How many have begun and not ended."""
        return len(self._tasks)

    def rest(self) -> None:
        """Begin no more; what runs goes on."""
        if self._arrivals is not None:
            self._arrivals.cancel()

    async def drain(self, *, within_s: float) -> None:
        """Begin no more and wait until all have ended."""
        self.rest()
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._tasks)

    async def all(self, *, within_s: float) -> None:
        """Wait until `total` have begun and ended."""
        assert self._arrivals is not None
        async with asyncio.timeout(within_s):
            await self._arrivals
            await asyncio.gather(*self._tasks)

    async def _arrive(self) -> None:
        for _ in itertools.count() if self._total is None else range(self._total):
            await self._room.acquire()
            balancer = self._dice.choice(self.balancers)
            task = asyncio.create_task(self._one(balancer.port))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            await asyncio.sleep(self._dice.expovariate(self._per_s))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _one(self, port: int) -> None:
        leaves = self._dice.random() < self._leave
        try:
            if leaves:
                async with asyncio.timeout(self._dice.uniform(0, self._length_s)):
                    result = await self._stream(port)
            else:
                result = await self._stream(port)
        except TimeoutError:
            result = "left"
        self.results[result] += 1
        self.by_balancer[port][result] += 1

    async def _stream(self, port: int) -> str:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return "refused"
        try:
            writer.write(stream_request(self._tokens))
            got = await reader.read()
        except OSError:
            return "cut"
        finally:
            writer.close()
        status = got.partition(b" ")[2][:3].decode() or "cut"
        if status != "200":
            return status
        return "ok" if b"data: [DONE]" in got and got.endswith(b"0\r\n\r\n") else "cut"
