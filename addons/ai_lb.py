"""The balancer's mitmproxy addon: `mitmdump -s addons/ai_lb.py`.

It translates between mitmproxy's hooks and `lb_core`: `request` routes, and whichever hook comes last
for a flow finishes what was routed, once. The rules that mitmproxy imposes on hooks stand where they apply.
"""

import asyncio
import contextlib
import gc
import logging
from collections import defaultdict
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path

from mitmproxy import command, connection, contentviews, ctx, exceptions, http
from mitmproxy.addonmanager import Loader
from mitmproxy.proxy import mode_specs

from addons import connections, proxy_options
from addons.decision_view import DecisionView
from addons.exchange import METADATA, Exchange, asked_host, drop_own_headers
from addons.failover_hooks import FailoverHooks
from lb_core import config, record
from lb_core.errors import ConfigError, InternalError, RouteError
from lb_core.replies import error_reply
from lb_core.request import api_of, parse, session_of
from lb_core.retry import Retries, repeatable
from lb_core.runtime import Runtime
from lb_core.types import Ending, Outcome

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "ai_lb.yaml"

DEFAULT_LISTEN = config.Listen("127.0.0.1", 8080)

_CLIENT_ENDINGS = ("Client disconnected.", "stream reset by client", "Connection killed.")

_BACKSTOP_S = 1.0
"""How long after its client left a flow may still report its own end."""


class AiLb:
    """Options, hooks and commands. `_runtime` is None while there is no configuration to work with."""

    def __init__(self) -> None:
        self._configured = False
        self._runtime: Runtime | None = None
        self._exchanges: dict[str, Exchange] = {}
        self._by_client: defaultdict[str, set[str]] = defaultdict(set)
        self.failover = FailoverHooks(self._exchanges)

    # -- life of the addon ------------------------------------------------------------------------

    def load(self, loader: Loader) -> None:
        """Declare the options and the content view."""
        contentviews.add(DecisionView())
        loader.add_option(
            "ai_lb_config", str, "", "Balancer: path of the YAML file; empty is configs/ai_lb.yaml here."
        )
        loader.add_option(
            "ai_lb_policy",
            str,
            "",
            "Balancer: policy of the routes without one of their own; empty is as configured, "
            "'off' is each cluster's own strategy. May be set while running.",
        )

    def configure(self, updated: set[str]) -> None:
        """Take the options: at the start all of them, later the changed ones."""
        if not self._configured:
            self._configured = True
            self._first_configure()
            return
        if self._runtime is None:
            return
        try:
            proxy_options.check()
            if "ai_lb_policy" in updated:
                self._runtime.use_policy(ctx.options.ai_lb_policy)
                logger.info("ai-lb: policy is now %s", ctx.options.ai_lb_policy or "as configured")
        except ConfigError as error:
            raise exceptions.OptionsError("; ".join(error.lines())) from error
        except proxy_options.Refusal as refusal:
            raise exceptions.OptionsError(f"ai-lb: {refusal}") from refusal
        if "ai_lb_config" in updated:
            raise exceptions.OptionsError("ai-lb: ai_lb_config can only be set at the start")

    def _first_configure(self) -> None:
        # Errors are logged, not raised: mitmproxy ends at a logged error while it starts, and a raised
        # one would be shown as a traceback. Until then every request is refused.
        chosen = ctx.options.ai_lb_config
        path = Path(chosen).expanduser() if chosen else DEFAULT_CONFIG
        try:
            loaded = config.load(path)
            runtime = Runtime(loaded)
            runtime.use_policy(ctx.options.ai_lb_policy)
            proxy_options.prepare(loaded.listen or DEFAULT_LISTEN)
        except ConfigError as error:
            for line in error.lines():
                logger.error("ai-lb: %s", line)
        except proxy_options.Refusal as refusal:
            logger.error("ai-lb: %s", refusal)
        else:
            self._runtime = runtime
            self.failover.use(runtime.balancer, connect_timeout_s=runtime.connect_timeout_s)

    def running(self) -> Awaitable[None]:
        """mitmproxy is up. Not `async def`: that would break live reload of the script."""
        return asyncio.ensure_future(self._start())

    async def _start(self) -> None:
        unknown = proxy_options.unknown_options()
        for name in unknown:
            logger.error("ai-lb: there is no option %s", name)
        if unknown or (runtime := self._runtime) is None:
            return
        try:
            await runtime.start()
        except OSError as error:
            logger.error("ai-lb: metrics_listen: %s", error.strerror)
        await proxy_options.listen_where_wanted()
        proxy_options.drop_unheard_log_events()
        # What is loaded by now stays: the collector need not walk it again and again under load.
        gc.collect()
        gc.freeze()
        for name, cluster in runtime.clusters.items():
            logger.info("ai-lb: cluster %s has %d endpoints", name, len(cluster.endpoints))

    def done(self) -> Awaitable[None]:
        """mitmproxy ends, or reloads this script: give back all that is held. Not `async def`, as above."""
        return asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        for flow_id in list(self._exchanges):
            self._finish(flow_id, Ending.ABANDONED)
        if ctx.master.should_exit.is_set():
            await connections.close_all()
        runtime, self._runtime = self._runtime, None
        self.failover.use(None)
        if runtime is not None:
            await runtime.close()

    # -- life of a request ------------------------------------------------------------------------

    def client_connected(self, client: connection.Client) -> None:
        """Serve reverse mode only: mitmproxy opens its default, an open proxy, until the script is loaded."""
        if not isinstance(client.proxy_mode, mode_specs.ReverseMode):
            client.error = "ai-lb serves reverse mode only"

    async def request(self, flow: http.HTTPFlow) -> None:
        """Place the request, or answer it."""
        if flow.response:
            return
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

    async def _place(self, flow: http.HTTPFlow) -> None:
        if (runtime := self._runtime) is None:
            raise InternalError("The load balancer is not configured.")
        balancer = runtime.balancer
        started = balancer.clock()
        runtime.retry_budget.requested()
        request = flow.request
        drop_own_headers(request.headers)
        path = request.path.partition("?")[0]
        llm = await parse(path, request.headers, request.raw_content or b"")
        session = session_of(request.headers) if llm is None else llm.session
        asked = balancer.request(
            host=asked_host(flow), path=path, headers=request.headers, session=session, llm=llm
        )
        placed = await balancer.route(asked, started=started)
        try:
            settings = runtime.settings[placed.route]
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
        reply = error_reply(error, api_of(flow.request.path.partition("?")[0]))
        body = b"" if flow.request.method == "HEAD" else reply.body
        flow.response = http.Response.make(reply.status, body, reply.headers)
        flow.metadata[METADATA] = record.refused(error, host=asked_host(flow))
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

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        """A websocket is closed."""
        self._finish(flow.id, Ending.COMPLETE)

    def error(self, flow: http.HTTPFlow) -> None:
        """The exchange failed, or its client left."""
        message = flow.error.msg if flow.error else ""
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

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Keep a fault in what is told about a request from touching the request."""
        try:
            yield
        except Exception:
            logger.exception("ai-lb: fault in a hook")
            if self._runtime:
                self._runtime.stats.hook_failed()

    # -- commands ---------------------------------------------------------------------------------

    @command.command("ai_lb.in_flight")
    def in_flight(self) -> Sequence[str]:
        """Requests in flight, one line for each endpoint."""
        counts = self._runtime.in_flight() if self._runtime else {}
        return [
            f"{cluster}/{endpoint}: {count}"
            for cluster, endpoints in counts.items()
            for endpoint, count in endpoints.items()
        ]


_ai_lb = AiLb()
addons = [_ai_lb, _ai_lb.failover]
