"""What mitmproxy must be set to for a balancer, and what it must not be set to."""

import logging
import ssl

from mitmproxy import ctx, exceptions, optmanager
from mitmproxy.addonmanager import traverse
from mitmproxy.log import LegacyLogEvents
from mitmproxy.proxy import mode_specs
from mitmproxy.tools.dump import DumpMaster

from lb_core.config import Listen
from lb_core.trust import trusting

NOWHERE = "reverse:http://lb.invalid:1"
"""A target that cannot exist (RFC 6761): a request that is not routed goes nowhere."""

_WANTED: dict[str, object] = {
    "connection_strategy": "lazy",  # eager connects to the target above for each client
    "http2": False,  # one upstream connection per request and a cache of failed connects
    "onboarding": False,  # answers the host mitm.it by itself
    "keep_host_header": True,  # routes match on the name that the client asked for
    "tcp_timeout": 3600,  # a long answer that is not streamed is silent for minutes
    "body_size_limit": "64m",
    "flow_detail": 0,  # 1 prints each request's query, where clients put keys
}

_WEB_COLUMNS = ["icon", "path", "method", "status", "comment", "size", "time"]
"""mitmweb's columns with the comment, which is the decision in one line."""


class Refusal(Exception):
    """mitmproxy is set to something that a balancer cannot work with; one line says what to change."""


def prepare(listen: Listen) -> None:
    """Set what a balancer needs and the user did not set. Raises Refusal."""
    wanted = dict(_WANTED, listen_host=listen.host, listen_port=listen.port)
    if listen.http2 is not None:
        wanted["http2"] = listen.http2
    wanted["web_columns"] = _WEB_COLUMNS
    if not _is_set("mode"):
        for log in _SERVER_LOGS:
            log.addFilter(_about_the_wanted_listener)
    check()
    modes = ctx.options.mode if _is_set("mode") else [NOWHERE]
    known = {name: value for name, value in wanted.items() if name in ctx.options}  # some are of one program
    unset = {name: value for name, value in known.items() if not _is_set(name)}
    ctx.options.update(**unset, mode=[_with_address(mode, listen) for mode in modes])


def _with_address(spec: str, listen: Listen) -> str:
    """The mode with its address in it, so that it differs from another whenever the listener must.

    A mode that names a port alone would listen on every interface.
    """
    mode = mode_specs.ProxyMode.parse(spec)
    host = ctx.options.listen_host if _is_set("listen_host") else listen.host
    port = ctx.options.listen_port if _is_set("listen_port") else listen.port
    without = spec.rpartition("@")[0] if mode.custom_listen_port is not None else spec
    return f"{without}@{mode.custom_listen_host or host}:{mode.custom_listen_port or port}"


def check() -> None:
    """Raise Refusal if an option that the user set would break the balancer."""
    if ctx.options.stream_large_bodies:
        raise Refusal(
            "stream_large_bodies sends requests on before they can be balanced; "
            "leave it unset (large responses are streamed anyway)"
        )
    if _is_set("connection_strategy") and ctx.options.connection_strategy != "lazy":
        raise Refusal("connection_strategy must be lazy: eager connects before the endpoint is chosen")
    if _is_set("mode"):
        for spec in ctx.options.mode:
            _check_mode(spec)


def _check_mode(spec: str) -> None:
    mode = mode_specs.ProxyMode.parse(spec)
    if not isinstance(mode, mode_specs.ReverseMode):
        raise Refusal(f"mode {spec} would be an open proxy; leave mode unset or use {NOWHERE}@127.0.0.1:PORT")
    if mode.scheme != "http" or not mode.address[0].endswith(".invalid"):
        raise Refusal(
            f"mode {spec} names a real target, where requests would go unbalanced after a fault; "
            f"leave mode unset or use {NOWHERE}@127.0.0.1:PORT"
        )


def _is_set(name: str) -> bool:
    # An option that was set to its default counts as set, which has_changed() cannot tell.
    return dict(ctx.options.items())[name].value is not optmanager.unset


TRUST = {"ssl_insecure", "ssl_verify_upstream_trusted_ca", "ssl_verify_upstream_trusted_confdir"}
"""mitmproxy's options for whom requests trust."""


def trust() -> ssl.SSLContext:
    """The same for what is no request: checks, and visits of pages. Raises ConfigError."""
    return trusting(
        ca_file=ctx.options.ssl_verify_upstream_trusted_ca,
        ca_dir=ctx.options.ssl_verify_upstream_trusted_confdir,
        insecure=ctx.options.ssl_insecure,
    )


def take_deferred() -> None:
    """Give the options that scripts have declared by now what the user set for them. Raises Refusal.

    mitmproxy does so itself after `load`, where a value that an option cannot have (two of them, none, one
    of another kind) takes the script away silently; that value may be another script's.
    """
    try:
        ctx.options.process_deferred()
    except (exceptions.OptionsError, TypeError) as error:
        ctx.options.deferred.clear()
        raise Refusal(f"{error}; give each option one value: --set NAME=VALUE") from error


def replay_when_all_is_up() -> None:
    """Put mitmproxy's replay of captured requests at the end of its addons, so that it starts last.

    It comes before the scripts, and would send requests while they are still starting: to engines that do not
    listen yet, and past mitmproxy's TLS addon, which faults on requests until it runs too.
    """
    chain = ctx.master.addons.chain
    replay = [addon for addon in chain if addon is ctx.master.addons.get("clientplayback")]
    # A list of its own: mitmproxy may be on its way through the other.
    ctx.master.addons.chain = [addon for addon in chain if addon not in replay] + replay


def unknown_options() -> list[str]:
    """Options that look like ours and are not: mitmproxy accepts any name silently."""
    return sorted(name for name in ctx.options.deferred if name.startswith("ai_lb"))


async def listen_where_wanted() -> None:
    """Open the wanted listener instead of the one that mitmproxy opened before the script was loaded."""
    proxyserver = ctx.master.addons.get("proxyserver")
    if ctx.options.server:
        await proxyserver.servers.update([mode_specs.ProxyMode.parse(spec) for spec in ctx.options.mode])
    for log in _SERVER_LOGS:
        log.removeFilter(_about_the_wanted_listener)


def drop_unheard_log_events() -> None:
    """Stop mitmproxy from offering each log entry to all addons as the deprecated event `add_log`.

    That costs 0.1 ms of CPU for each entry, several for each connection. Left alone if an addon listens.
    """
    if any(hasattr(addon, "add_log") for addon in traverse(ctx.master.addons.chain)):
        return
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LegacyLogEvents)]:
        root.removeHandler(handler)


_IDLE_UNLESS_SET = {
    "anticache": "anticache",
    "anticomp": "anticomp",
    "blocklist": "block_list",
    "maplocal": "map_local",
    "mapremote": "map_remote",
    "modifybody": "modify_body",
    "modifyheaders": "modify_headers",
    "proxyauth": "proxyauth",
    "savehar": "hardump",
    "serverplayback": "server_replay",
    "stickyauth": "stickyauth",
    "stickycookie": "stickycookie",
    "upstreamauth": "upstream_auth",
}
"""mitmproxy's own addons that do nothing without an option, and the option."""

_IDLE_COMMANDS = ("browser", "commandhistory", "cut", "export")
"""Those that only have commands, which nobody can call in mitmdump."""


def drop_idle_addons() -> None:
    """Take addons of mitmproxy that have nothing to do out of the way of each request.

    Each costs 16 to 41 µs of CPU per request. Only in mitmdump: elsewhere people may set their options later.
    """
    if not isinstance(ctx.master, DumpMaster):
        return
    idle = [name for name, option in _IDLE_UNLESS_SET.items() if not getattr(ctx.options, option)]
    if not ctx.options.onboarding:
        idle.append("onboarding")
    for name in (*idle, *_IDLE_COMMANDS):
        addon = ctx.master.addons.get(name)
        if addon is not None and addon in ctx.master.addons.chain:
            ctx.master.addons.remove(addon)


_CONNECTION_LOG = logging.getLogger("mitmproxy.proxy.server")

_QUOTES_CLIENTS = ("Client closed connection before completing request headers", "Bad HTTP request line")


def keep_requests_out_of_the_log() -> None:
    """Cut what mitmproxy quotes of requests that it cannot read: they may hold keys."""
    _CONNECTION_LOG.addFilter(_without_quotes)


def _without_quotes(entry: logging.LogRecord) -> bool:
    message = entry.getMessage()
    for start in _QUOTES_CLIENTS:
        place = message.find(start)
        if place >= 0:
            entry.msg, entry.args = message[: place + len(start)], ()
    return True


_SERVER_LOGS = [
    logging.getLogger(name) for name in ("mitmproxy.addons.proxyserver", "mitmproxy.proxy.mode_servers")
]


def _about_the_wanted_listener(entry: logging.LogRecord) -> bool:
    """Drop what is said of a listener that nobody wanted: its port may be taken, and it is closed anyway."""
    message = entry.getMessage()
    return bool(message) and "HTTP(S) proxy " not in message
