"""The balancer's life within mitmproxy: options, start, reload, commands, drain, end."""

import asyncio
import contextlib
import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from pathlib import Path

from mitmproxy import command, contentviews, ctx, exceptions
from mitmproxy.addonmanager import Loader

from addons import connections, proxy_options, terminal_log
from addons.decision_view import DecisionView
from lb_core import config
from lb_core.config.report import nearest
from lb_core.errors import ConfigError
from lb_core.runtime import Runtime
from lb_core.watch import FileWatch, Stamp

logger = logging.getLogger(__name__)

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "ai_lb.yaml"

DEFAULT_LISTEN = config.Listen("127.0.0.1", 8080)


class Lifecycle(ABC):
    """All but the requests. `_runtime` is None while there is no configuration to work with."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._draining = False
        self._verbose = False
        self._configured = False
        self._path = DEFAULT_CONFIG
        self._policy = ""
        self._listening: tuple[config.Listen | None, config.Listen | None] = (None, None)
        self._stamp: Stamp | None = None
        self._watch: FileWatch[config.Config] | None = None

    @abstractmethod
    def _use(self, runtime: Runtime | None) -> None:
        """There is a new configuration, or none any more."""

    @abstractmethod
    def _is_idle(self) -> bool:
        """Whether no request is in flight here."""

    @abstractmethod
    def _finish_all(self) -> None:
        """Give back all that is held."""

    def load(self, loader: Loader) -> None:
        """Declare what is ours. Whatever goes wrong here, nobody is served."""
        # Nothing is raised: an OptionsError from here would go unheard and take the hooks away, and mitmproxy
        # would stay as the open proxy that it is without them. A logged error ends the start, and after that,
        # when the script is loaded again, hooks without a configuration refuse everything.
        try:
            self._load(loader)
        except Exception as error:
            self._configured = True
            if isinstance(error, proxy_options.Refusal):
                logger.error("ai-lb: %s", error)
            else:
                logger.exception("ai-lb: the balancer does not load")

    def _load(self, loader: Loader) -> None:
        terminal_log.print_through_full_disks()
        terminal_log.say_once_that_files_ran_out()
        terminal_log.name_the_balancer()
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
        # mitmweb's API takes names of small letters and dots alone.
        loader.add_command("ailb.inflight", self.in_flight)
        loader.add_command("ailb.reload", self.reload)
        loader.add_command("ailb.drain", self.drain)
        loader.add_command("ailb.undrain", self.undrain)
        proxy_options.take_deferred()
        proxy_options.replay_when_all_is_up()

    def configure(self, updated: set[str]) -> None:
        """Take the options: at the start all of them, later the changed ones."""
        if "termlog_verbosity" in updated:
            self._verbose = ctx.options.termlog_verbosity == "debug"
        if not self._configured:
            self._configured = True
            self._first_configure()
            return
        if self._runtime is None:
            return
        try:
            proxy_options.check()
            if proxy_options.TRUST & updated:
                self._runtime.trust(proxy_options.trust())
            # Where mitmproxy takes a refused value back, it is the one in use again.
            if "ai_lb_policy" in updated and ctx.options.ai_lb_policy != self._policy:
                self._use_policy(self._runtime)
                logger.info("ai-lb: policy is now %s", self._policy or "as configured")
        except ConfigError as error:
            raise exceptions.OptionsError("; ".join(error.lines())) from error
        except proxy_options.Refusal as refusal:
            raise exceptions.OptionsError(str(refusal)) from refusal
        if "ai_lb_config" in updated:
            raise exceptions.OptionsError("ai-lb: ai_lb_config can only be set at the start")

    def _first_configure(self) -> None:
        # Errors are logged, not raised: mitmproxy ends at a logged error while it starts, and a raised
        # one would be shown as a traceback. Until then every request is refused.
        chosen = ctx.options.ai_lb_config
        if chosen:
            self._path = Path(chosen).expanduser()
        try:
            with contextlib.suppress(OSError):  # told by `load`
                self._stamp = Stamp.of(self._path)
            loaded = config.load(self._path)
            runtime = Runtime(loaded)
            self._use_policy(runtime)
            runtime.trust(proxy_options.trust())
            proxy_options.prepare(loaded.listen or DEFAULT_LISTEN)
        except ConfigError as error:
            for line in error.lines():
                logger.error("ai-lb: %s", line)
        except proxy_options.Refusal as refusal:
            logger.error("ai-lb: %s", refusal)
        else:
            self._runtime = runtime
            self._listening = (loaded.listen, loaded.metrics_listen)
            self._use(runtime)

    def _use_policy(self, runtime: Runtime) -> None:
        name = ctx.options.ai_lb_policy
        try:
            runtime.use_policy(name)
        except ConfigError as error:
            why = "; ".join(problem.message for problem in error.problems)
            raise proxy_options.Refusal(
                f"option ai_lb_policy: {why}; 'off' is each cluster's own strategy, empty is as configured"
            ) from error
        self._policy = name

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
            listen = runtime.config.metrics_listen or DEFAULT_LISTEN
            logger.error(
                "ai-lb: metrics_listen: %s:%d cannot be had (%s); choose another address, or stop who has it",
                listen.host,
                listen.port,
                error.strerror,
            )
        self._watch = FileWatch(
            self._path, config.load, self._reload, self._reload_failed, loaded=self._stamp
        )
        self._watch.start()
        connections.on_sigterm(self._drain)
        proxy_options.keep_requests_out_of_the_log()
        proxy_options.drop_unheard_log_events()
        proxy_options.drop_idle_addons()
        await proxy_options.listen_where_wanted()
        runtime.ready = True
        # What is loaded by now stays: the collector need not walk it again and again under load.
        gc.collect()
        gc.freeze()
        for name, cluster in runtime.clusters.items():
            count = len(cluster.endpoints)
            logger.info("ai-lb: cluster %s has %d endpoint%s", name, count, "" if count == 1 else "s")
        for line in config.warnings(runtime.config):
            logger.warning("ai-lb: %s", line)

    def _reload(self, loaded: config.Config) -> None:
        """The file has another good content. Raises ConfigError for what only shows now."""
        if (runtime := self._runtime) is None:
            return
        before = runtime.config
        runtime.apply(loaded)
        self._use(runtime)
        logger.info("ai-lb: the configuration was reloaded")
        for line in sorted({*config.warnings(loaded)} - {*config.warnings(before)}):
            logger.warning("ai-lb: %s", line)
        listening = (loaded.listen, loaded.metrics_listen)
        if (before.listen, before.metrics_listen) != listening != self._listening:
            logger.warning("ai-lb: listen and metrics_listen take effect at the next start")

    def _reload_failed(self, error: ConfigError) -> None:
        for line in error.lines():
            logger.error("ai-lb: the configuration stays as it was: %s", line)

    def _drain(self) -> None:
        self._draining = True
        if self._runtime is not None:
            self._runtime.ready = False

    def done(self) -> Awaitable[None]:
        """mitmproxy ends, or reloads this script: give back all that is held. Not `async def`, as above."""
        return asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        if self._watch is not None:
            await self._watch.stop()
        if self._draining and self._runtime is not None:
            logger.info("ai-lb: draining")
            await connections.drain(self._is_idle, within_s=self._runtime.config.drain_timeout_s)
        self._finish_all()
        if ctx.master.should_exit.is_set():
            await connections.close_all()
        runtime, self._runtime = self._runtime, None
        self._use(None)
        if runtime is not None:
            await runtime.close()

    @command.command("ai_lb.in_flight")
    def in_flight(self) -> Sequence[str]:
        """Requests in flight, one line for each endpoint."""
        counts = self._runtime.in_flight() if self._runtime else {}
        return [
            f"{cluster}/{endpoint}: {count}"
            for cluster, endpoints in counts.items()
            for endpoint, count in endpoints.items()
        ]

    @command.command("ai_lb.reload")
    def reload(self) -> None:
        """Read the configuration file again, now."""
        if self._watch is not None:
            self._watch.reload_now()

    @command.command("ai_lb.drain")
    def drain(self, endpoint: str) -> None:
        """Give an endpoint no more requests; those that it has go on."""
        self._set_drained(endpoint, drained=True)

    @command.command("ai_lb.undrain")
    def undrain(self, endpoint: str) -> None:
        """Take ai_lb.drain back."""
        self._set_drained(endpoint, drained=False)

    def _set_drained(self, endpoint: str, *, drained: bool) -> None:
        if self._runtime is None:
            return
        counts = self._runtime.in_flight()
        names = {f"{cluster}/{name}": name for cluster, endpoints in counts.items() for name in endpoints}
        name = names.get(endpoint, endpoint)
        if name not in names.values():
            near = nearest(endpoint, names) or f"; there are: {', '.join(names)}"
            raise exceptions.CommandError(f"there is no endpoint {endpoint}{near}")
        self._runtime.drain(name, drained=drained)
