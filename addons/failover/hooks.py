"""Another endpoint for a request whose endpoint failed, and an end for those that wait too long.

The hooks that `addons.failover` and its timers need, next to those of `addons.ai_lb`, with whose exchanges
they work.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import replace

from mitmproxy import connection
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.proxy import layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from addons import failover
from addons.exchange import Exchange
from addons.failover import leaks
from addons.failover.held import DRAIN_S
from addons.failover.timers import ConnectTimeouts, cut
from addons.headers import is_event_stream
from lb_core.balancer import Balancer
from lb_core.retry import Cause, Verdict
from lb_core.tasks import spawn
from lb_core.types import Endpoint

logger = logging.getLogger(__name__)

_SILENT_S = 5.0
"""An endpoint that refuses connections and streams nothing for so long is gone: real engines that were told
to end hold their streams open for minutes."""


class FailoverHooks:
    """A second addon of the script. It sees the exchanges of the first, by flow id, and ids by client."""

    def __init__(self, exchanges: Mapping[str, Exchange], by_client: Mapping[str, AbstractSet[str]]) -> None:
        self._exchanges = exchanges
        self._by_client = by_client
        self._balancer: Balancer | None = None
        self._watched: set[Endpoint] = set()
        """Endpoints that refused, whose streams are looked at soon."""
        self._timeouts = ConnectTimeouts(self._connect_timeout_s)

    def use(self, balancer: Balancer | None) -> None:
        """Work with this balancer from now on; None is not at all."""
        self._balancer = balancer

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        """Serve clients by the layer that asks."""
        failover.next_layer(nextlayer, hold_s=self._hold_s)

    def _hold_s(self, flow: HTTPFlow, response: Response) -> float | None:
        exchange = self._exchanges.get(flow.id)
        if exchange is None:
            return None
        if response.status_code == 200:
            if not is_event_stream(response.headers):
                return None
            exchange.has_stream = True
            return exchange.retries.hold_s
        return DRAIN_S if exchange.retries.holds(response.status_code) else None

    async def ai_lb_retry(self, question: failover.Question) -> None:
        """An endpoint failed before the client saw anything of a response."""
        exchange, balancer = self._exchanges.get(question.flow.id), self._balancer
        if exchange is None or balancer is None:
            return
        if exchange.first_byte_fired:
            question.failure = replace(question.failure, cause=Cause.TIMED_OUT)
        failure = question.failure
        exchange.attempt_failed(failure, question.response)
        if failure.cause in (Cause.CONNECT, Cause.CONNECT_TIMEOUT):
            self._watch_silent(exchange.placement.endpoint)
        question.retry_after_s = exchange.retry_after_s()
        if exchange.retries.judge(failure) is not Verdict.RETRY:
            return
        moved = await balancer.retry(
            exchange.placement, exchange.failed_outcome(failure), or_same=failure.cause is Cause.STALE
        )
        if moved is not None and question.flow.id in self._exchanges:
            exchange.retries.spend(failure)
            exchange.move(moved)
            question.again = True

    def _watch_silent(self, endpoint: Endpoint) -> None:
        """Look in a while whether it refuses still, and which of its streams went on."""
        seen = {
            flow_id: exchange.events
            for flow_id, exchange in self._exchanges.items()
            if exchange.placement.endpoint == endpoint and exchange.events is not None
        }
        if seen and endpoint not in self._watched:
            self._watched.add(endpoint)
            spawn(self._close_silent(endpoint, seen), name=f"silent streams of {endpoint.name}")

    async def _close_silent(self, endpoint: Endpoint, seen: Mapping[str, int | None]) -> None:
        try:
            await asyncio.sleep(_SILENT_S)
            if await _accepts(endpoint):  # one that restarts its front end, or refused for a moment
                return
        finally:
            self._watched.discard(endpoint)
        for flow_id, events in seen.items():
            exchange = self._exchanges.get(flow_id)
            if exchange is None or exchange.placement.endpoint != endpoint:
                continue
            if exchange.events == events:
                logger.debug("ai-lb: a silent stream of %s, which refuses connections, is cut", endpoint.name)
                cut(exchange.flow)

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Time the connection. Nothing may be awaited here: mitmproxy would forget the flow."""
        self._timeouts.server_connect(data)
        for exchange in self._at(data):
            endpoint = exchange.placement.endpoint
            if endpoint.scheme == "https":
                data.server.sni = endpoint.server_name or endpoint.host  # not what the client called us

    def _connect_timeout_s(self, data: ServerConnectionHookData) -> float:
        """That of the route; the longest where a client waits for one connection on several routes."""
        return max((exchange.retries.connect_timeout_s for exchange in self._at(data)), default=1.0)

    def _at(self, data: ServerConnectionHookData) -> Iterator[Exchange]:
        """The exchanges that the connection is for."""
        for flow_id in self._by_client.get(data.client.id, ()):
            exchange = self._exchanges.get(flow_id)
            if exchange is not None:
                endpoint = exchange.placement.endpoint
                if (endpoint.host, endpoint.port) == data.server.address:
                    yield exchange

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """It stands; tell the health of the endpoint."""
        self._timeouts.server_connected(data)
        if self._balancer is not None:
            for exchange in self._at(data):
                self._balancer.connected(exchange.placement)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """It does not."""
        self._timeouts.server_connect_error(data)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """It is over."""
        self._timeouts.server_disconnected(data)
        leaks.server_disconnected(data)

    def client_disconnected(self, client: connection.Client) -> None:
        """Close what mitmproxy forgets."""
        leaks.client_disconnected(client)


async def _accepts(endpoint: Endpoint) -> bool:
    """Whether it can be connected to, within a second."""
    try:
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except (OSError, TimeoutError):
        return False
    with closing(writer):
        return True
