"""Addresses as people write them. Every fault is a ValueError whose text repeats no user name or password."""

import ipaddress
import re
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import parse_qsl, unquote

from lb_core.config.model import Listen, RedisConfig
from lb_core.config.report import nearest

LOOPBACK = "127.0.0.1"
"""Where to listen unless a host is asked for: who opens a port to others says so."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_UNPRINTED = re.compile(r"[\s\x00-\x1f\x7f]")
_DEFAULT_PORTS = {"http": 80, "https": 443, "dns+http": 80, "dns+https": 443}
_PATH = re.compile(r"/[!-~]*")
_REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "redis+sentinel")
_REDIS_OPTIONS = ("db", "sentinel_password", "ssl_ca_certs", "ssl_cert_reqs", "tls")
_OF_TWO = {"tls": ("true", "false"), "ssl_cert_reqs": ("none", "required")}


def host_name(text: str) -> str:
    """A host name in lower case and ASCII, or an IP address in its shortest form."""
    if address := _ip_address(text):
        return address
    if len(text) > 254:  # the codec takes long for long names
        raise ValueError("not a valid host name: longer than 253 characters")
    try:
        name = text.removesuffix(".").encode("idna").decode().lower()
    except UnicodeError:
        raise ValueError("not a valid host name: each part between dots has 1 to 63 characters") from None
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) and len(label) <= 63 for label in labels):
        raise ValueError("not a valid host name or IP address")
    if labels[-1].isdigit():
        raise ValueError("not a valid IP address")
    return name


def _ip_address(text: str) -> str | None:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return None if "%" in bare else str(ipaddress.ip_address(bare))
    except ValueError:
        return None


def port_number(text: str) -> int:
    """A port from its decimal digits."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535:
        return int(text)
    raise ValueError("the port is not a whole number between 1 and 65535")


def _host_and_port(text: str, default_port: int | None) -> tuple[str, int]:
    """`host:port`, `[v6]:port`; the port may be left out where there is a default."""
    host, colon, port = text, "", ""
    if not text.endswith("]") and ":" in text:
        host, colon, port = text.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address needs brackets, such as [::1]:8080")
    if not port and (default_port is None or colon):
        raise ValueError("the port is missing")
    return host_name(host), port_number(port) if port else default_port or 0


def listen(text: str) -> Listen:
    """Where to listen: `host:port` or `[v6]:port`; `8080` and `:8080` are for this machine alone."""
    if text.startswith("*:"):
        raise ValueError(f"for every interface use 0.0.0.0{text[1:]}")
    if (port := text.removeprefix(":")).isdigit():
        return Listen(LOOPBACK, port_number(port))
    return Listen(*_host_and_port(text, None))


def endpoint_url(text: str) -> tuple[str, str, int]:
    """Scheme, host and port of `http://host:port`; such a URL has nothing else.

    The scheme may begin with `dns+`; the host is then a name, for all of whose addresses the URL stands.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise ValueError("expected an http or https URL such as http://10.0.0.1:8000")
    if _UNPRINTED.search(text):
        raise ValueError("a URL has no white space or control characters")
    if "@" in rest:
        raise ValueError("an endpoint's URL has no user name or password")
    if "?" in rest or "#" in rest or rest.partition("/")[2]:
        raise ValueError("remove what follows the host and port: path and query come with each request")
    host, port = _host_and_port(rest.removesuffix("/"), _DEFAULT_PORTS[scheme])
    if scheme.startswith("dns+") and _ip_address(host):
        raise ValueError(f"{scheme} takes a host name; for an IP address write {scheme.removeprefix('dns+')}")
    return scheme, host, port


def page_path(text: str) -> str:
    """The path of a page, perhaps with a query, as it stands in a request."""
    if len(text) > 1000 or not _PATH.fullmatch(text) or "#" in text:
        raise ValueError("expected a path such as /metrics, at most 1000 characters of ASCII without spaces")
    return text


def envoy_name(text: str) -> tuple[str, str, int]:
    """Scheme, host and port of `outbound|80||test-1.dns`, as Istio and Higress name what a gateway reaches.

    The scheme is https for port 443, else http. A subset, between the last two bars, is not supported.
    """
    match text.split("|"):
        case ["outbound", port, "", host]:
            number = port_number(port)
            return "https" if number == 443 else "http", host_name(host), number
    raise ValueError("expected a cluster of this configuration or a name such as outbound|80||test-1.dns")


def redis_url(text: str, *, timeout_ms: int, hosts: Mapping[str, str] = MappingProxyType({})) -> RedisConfig:
    """A Redis server from its URL. Plain servers come out as `serviceFQDN` would give them.

    `hosts` are addresses of host names; sentinels and clusters may tell names that are not in the URL.
    """
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _REDIS_SCHEMES or _UNPRINTED.search(text):
        raise ValueError(
            "expected a Redis URL such as redis://10.0.0.5:6379/0;"
            f" valid schemes: {', '.join(_REDIS_SCHEMES)}"
        )
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, _, servers = authority.rpartition("@")
    default_port = 26379 if scheme == "redis+sentinel" else 6379
    addresses = [_host_and_port(server, default_port) for server in servers.split(",")]
    host, port = addresses[0]
    if "," in servers and scheme in {"redis", "rediss"}:
        raise ValueError("redis:// and rediss:// name one server; see redis+cluster:// and redis+sentinel://")
    database = _redis_path_and_options(scheme, rest.removeprefix(authority))
    if scheme != "redis" or "?" in rest or len(database) > 9:
        told = hosts if scheme in {"redis+cluster", "redis+sentinel"} else dict(addresses)
        located = tuple(sorted((name, address) for name, address in hosts.items() if name in told))
        return RedisConfig(host, port, timeout_ms=timeout_ms, url=text, located=located)
    username, _, password = credentials.partition(":")
    host = hosts.get(host, host)
    return RedisConfig(host, port, unquote(username), unquote(password), int(database or 0), timeout_ms)


def _redis_path_and_options(scheme: str, text: str) -> str:
    """The database in what follows the servers of a Redis URL; "" where it names none."""
    path, _, query = text.partition("?")
    if "#" in text:
        raise ValueError("a Redis URL has no fragment; in a password write %23 for #")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options.keys() - set(_REDIS_OPTIONS):
        near = nearest(name, _REDIS_OPTIONS) or ";"  # the name is not shown: it may be half a password
        valid = ", ".join(_REDIS_OPTIONS)
        raise ValueError(f"an option of the Redis URL is unknown{near} valid options: {valid}")
    for name, words in _OF_TWO.items():
        if options.get(name, words[0]) not in words:
            raise ValueError(f"the option {name} of the Redis URL is not {words[0]} or {words[1]}")
    if scheme != "rediss" and options.get("tls") != "true":
        for name in ("ssl_ca_certs", "ssl_cert_reqs"):
            if name in options:
                raise ValueError(f"the option {name} of the Redis URL is for TLS: rediss://, or tls=true")
    if scheme != "redis+sentinel" and "sentinel_password" in options:
        raise ValueError("sentinel_password is for redis+sentinel://")
    parts = path.strip("/").split("/")
    most = 2 if scheme == "redis+sentinel" else 1
    if len(parts) > most:
        raise ValueError("a Redis URL has no more than a service and a database as its path")
    database = parts[most - 1] if len(parts) == most else ""
    for number in (database, options.get("db", "")):
        if number and not (number.isascii() and number.isdigit()):
            raise ValueError("the database in a Redis URL is a number, such as redis://10.0.0.5:6379/0")
    return database
