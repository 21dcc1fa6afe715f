"""The balancer's mitmproxy addon: `mitmdump -s addons/ai_lb.py`.

It translates between mitmproxy's hooks and `lb_core`: `request` routes, and whichever hook comes last
for a flow finishes what was routed, once. The rules that mitmproxy imposes on hooks stand where they apply.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mitmproxy import connection, ctx, http, tcp
from mitmproxy.proxy import mode_specs

from addons.client_connection import response_of
from addons.exchange import METADATA, Exchange, asked_host
from addons.failover.hooks import FailoverHooks
from addons.headers import check_head, drop_own_headers
from addons.lifecycle import Lifecycle
from lb_core import record
from lb_core.errors import Draining, InternalError, RouteError, TooLarge
from lb_core.request import parse, plain_path, session_of
from lb_core.retry import Retries, repeatable
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome

logger = logging.getLogger(__name__)

_CLIENT_ENDINGS = ("Client disconnected.", "stream reset by client", "Connection killed.")

_TOO_LARGE = "Request body exceeds"
"""mitmproxy's answer to `body_size_limit`, given without a call of `request`."""

_BACKSTOP_S = 1.0
"""How long after its client left a flow may still report its own end."""

_MESSAGES = 32
"""Messages of an upgraded connection that mitmweb can show."""


class AiLb(Lifecycle):
    """The hooks of a request. `_exchanges` are the requests placed and not finished, by flow id."""

    def __init__(self) -> None:
        super().__init__()
        self._exchanges: dict[str, Exchange] = {}
        self._by_client: defaultdict[str, set[str]] = defaultdict(set)
        self._being_placed = 0
        self.failover = FailoverHooks(self._exchanges, self._by_client)

    def _use(self, runtime: Runtime | None) -> None:
        self.failover.use(None if runtime is None else runtime.balancer)

    def _is_idle(self) -> bool:
        return not self._exchanges and not self._being_placed

    def _finish_all(self) -> None:
        for flow_id in list(self._exchanges):
            self._finish(flow_id, Ending.ABANDONED)

    def client_connected(self, client: connection.Client) -> None:
        """Serve reverse mode only: mitmproxy opens its default, an open proxy, until the script is loaded."""
        if not isinstance(client.proxy_mode, mode_specs.ReverseMode):
            client.error = "ai-lb serves reverse mode only"

    async def request(self, flow: http.HTTPFlow) -> None:
        """Place the request, or answer it."""
        if flow.response:
            return
        self._being_placed += 1
        try:
            await self._place(flow)
        except RouteError as error:
            self._refuse(flow, error)
        except Exception:
            # mitmproxy would send the request on as it is, so the answer comes before all else.
            self._refuse(flow, InternalError("The load balancer failed on this request."))
            logger.exception("ai-lb: a request is refused after a fault")
            if self._runtime:
                self._runtime.stats.hook_failed()
        finally:
            self._being_placed -= 1

    async def _place(self, flow: http.HTTPFlow) -> None:
        if (runtime := self._runtime) is None:
            raise InternalError("The load balancer is not configured.")
        if self._draining:
            raise Draining("The load balancer is shutting down.")
        balancer = runtime.balancer
        started = balancer.clock()
        runtime.retry_budget.requested()
        request = flow.request
        check_head(request)
        drop_own_headers(request.headers)
        path = plain_path(request.path)
        llm = await parse(path, request.headers, request.raw_content or b"")
        session = session_of(request.headers) if llm is None else llm.session
        asked = balancer.request(
            host=asked_host(flow), path=path, headers=request.headers, session=session, llm=llm
        )
        # Taken before the wait, in which a reload may rename the route: what matched is what holds.
        settings_of = runtime.settings
        try:
            placed = await balancer.route(asked, started=started)
        except RouteError as error:
            error.model = asked.model
            raise
        try:
            settings = settings_of[placed.route]
            method = request.method
            exchange = Exchange(
                flow,
                placed,
                balancer=balancer,
                retries=Retries(
                    settings.retry, runtime.retry_budget, repeatable(method=method, path=path, llm=llm)
                ),
                timeouts=settings.timeouts,
            )
            exchange.direct()
        except BaseException:
            balancer.finish(placed, Outcome(Ending.ABANDONED))
            raise
        self._exchanges[flow.id] = exchange
        self._by_client[flow.client_conn.id].add(flow.id)

    def _refuse(self, flow: http.HTTPFlow, error: RouteError) -> None:
        flow.response = response_of(error, flow.request)
        if self._draining:
            flow.response.headers["connection"] = "close"
        flow.metadata[METADATA] = record.refused(
            error, host=asked_host(flow), path=plain_path(flow.request.path)
        )
        flow.comment = record.line(flow.metadata[METADATA])
        if self._runtime:
            self._runtime.stats.refused(error.code)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """The endpoint answers."""
        exchange = self._exchanges.get(flow.id)
        if exchange is not None and self._runtime is not None:
            with self._guard():
                exchange.response_started(expose=self._runtime.config.expose_decision)

    def response(self, flow: http.HTTPFlow) -> None:
        """The response is complete; an upgraded connection goes on until `websocket_end`."""
        if flow.response is None or flow.response.status_code != 101:
            self._finish(flow.id, Ending.COMPLETE)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        """mitmproxy keeps every message, as long as the session lasts."""
        if flow.websocket is not None:
            _forget_all_but_the_last(flow.websocket.messages)

    def tcp_message(self, flow: tcp.TCPFlow) -> None:
        """The same for what is neither HTTP nor a websocket after an upgrade."""
        _forget_all_but_the_last(flow.messages)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """A websocket is closed."""
        self._finish(flow.id, Ending.COMPLETE)

    def error(self, flow: http.HTTPFlow) -> None:
        """The exchange failed, or its client left."""
        message = flow.error.msg if flow.error else ""
        if message.startswith(_TOO_LARGE) and self._runtime:
            self._runtime.stats.refused(TooLarge.code)
        exchange = self._exchanges.get(flow.id)
        if exchange and flow.response and self._runtime and self._runtime.config.expose_decision:
            exchange.tell_attempts(flow.response.headers)
        left = message.startswith(_CLIENT_ENDINGS)
        self._finish(flow.id, Ending.CLIENT_LEFT if left else Ending.UPSTREAM_FAILED)

    def client_disconnected(self, client: connection.Client) -> None:
        """Backstop for the flows that end with neither `response` nor `error`."""
        if client.id in self._by_client:
            asyncio.get_running_loop().call_later(_BACKSTOP_S, self._finish_client, client.id)

    def _finish_client(self, client_id: str) -> None:
        for flow_id in tuple(self._by_client.get(client_id, ())):
            self._finish(flow_id, Ending.ABANDONED)

    def _finish(self, flow_id: str, ending: Ending) -> None:
        """Take one placed request back, whoever asks first."""
        exchange = self._exchanges.pop(flow_id, None)
        if exchange is None or self._runtime is None:
            return
        client_id = exchange.flow.client_conn.id
        client_flows = self._by_client[client_id]
        client_flows.discard(flow_id)
        if not client_flows:
            del self._by_client[client_id]
        outcome = Outcome(ending)
        with self._guard():
            outcome = exchange.ended(ending)
        self._runtime.balancer.finish(exchange.placement, outcome)
        if self._verbose and self._runtime.logs_details(exchange.placement.route):
            logger.debug("ai-lb: %s", exchange.flow.comment)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Keep a fault in what is told about a request from touching the request."""
        try:
            yield
        except Exception:
            logger.exception("ai-lb: fault in a hook")
            if self._runtime:
                self._runtime.stats.hook_failed()


def _forget_all_but_the_last(messages: list[Any]) -> None:
    if not ctx.options.store_streamed_bodies:
        del messages[:-_MESSAGES]


_ai_lb = AiLb()
addons = [_ai_lb, _ai_lb.failover]
