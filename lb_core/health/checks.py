"""Active checks: ask each endpoint again and again whether it is well."""

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence

from lb_core.health.config import ChecksConfig
from lb_core.trust import trusting
from lb_core.types import Endpoint

_AT_ONCE = 64
_JITTER = 0.2
_LONGEST_LINE = 1024
"""Bytes read of an answer at most; its first line is all that counts."""

_GOOD = re.compile(rb"HTTP/1\.[01] [23][0-9][0-9](?: |\r?\n)")


class Checker:
    """Checks the endpoints of one cluster. `report` is told each result: the name, and whether it is good.

    `endpoints` is asked anew for each round, so it follows reloads. `tls` is for https; None trusts
    what is trusted by default. `dice` gives numbers in [0, 1).
    """

    def __init__(
        self,
        config: ChecksConfig,
        endpoints: Callable[[], Sequence[Endpoint]],
        report: Callable[[str, bool], None],
        *,
        dice: Callable[[], float],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self._endpoints = endpoints
        self._report = report
        self._dice = dice
        self._tls = tls or trusting()
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Check for ever; ends by being cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            await self.round()
            pause = self._config.interval_s * (1 + _JITTER * (2 * self._dice() - 1))
            # At least a little, so that a round that took too long does not become a busy loop.
            await asyncio.sleep(max(begun + pause - loop.time(), 0.05))

    async def round(self) -> None:
        """Check every endpoint once, at most 64 at the same time."""
        await asyncio.gather(*(self._one(endpoint) for endpoint in self._endpoints()))

    async def _one(self, endpoint: Endpoint) -> None:
        async with self._places:
            self._report(endpoint.name, await self.check(endpoint))

    async def check(self, endpoint: Endpoint) -> bool:
        """Tell if the endpoint answers well and in time; never raises for what the endpoint does."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                return await self._ask(endpoint)
        except (OSError, ValueError):
            # Also time-outs, TLS faults, names that cannot be encoded, and lines that do not end.
            return False

    async def _ask(self, endpoint: Endpoint) -> bool:
        tls = self._tls if endpoint.scheme == "https" else None
        name = (endpoint.server_name or endpoint.host) if tls else None
        reader, writer = await asyncio.open_connection(
            endpoint.host, endpoint.port, ssl=tls, server_hostname=name, limit=_LONGEST_LINE
        )
        try:
            if not self._config.path:
                return True
            writer.write(
                f"GET {self._config.path} HTTP/1.1\r\nHost: {endpoint.authority}\r\n"
                "User-Agent: ai-lb-check\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("ascii")
            )
            await writer.drain()
            return _GOOD.match(await reader.readline()) is not None
        finally:
            # Not `close`: TLS would wait for an endpoint that does not answer.
            writer.transport.abort()
