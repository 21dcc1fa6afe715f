"""Which headers pass between client and endpoint, and which requests do not."""

import re

from mitmproxy import http

from lb_core.errors import Malformed

HEADER_PREFIX = "x-ai-lb-"
"""Of the headers in which the balancer speaks."""

_HOP_BY_HOP = frozenset({"keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"})
_FRAMING = frozenset({"connection", "content-length", "host", "trailer", "transfer-encoding", "upgrade"})
_OF_CONNECTIONS = frozenset({"close", "keep-alive", "upgrade"})

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[^\x00-\x20\x7f]*|\*")
_VERSIONS = frozenset({b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/3"})
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def is_event_stream(headers: http.Headers) -> bool:
    """Tell if the body is a stream of events that can be read. A compressed one is passed on unread."""
    kind: str = headers.get("content-type", "")
    return kind.lower().startswith("text/event-stream") and not is_compressed(headers)


def is_compressed(headers: http.Headers) -> bool:
    """Tell if the body comes in lumps, as a compressor gives them off."""
    coding: str = headers.get("content-encoding", "identity")
    return coding.lower() != "identity"


def drop_own_headers(headers: http.Headers) -> None:
    """Remove `x-ai-lb-*`: nobody but the balancer speaks for the balancer."""
    for name in {name.lower() for name in headers}:
        if name.startswith(HEADER_PREFIX):
            del headers[name]


def drop_hop_by_hop(headers: http.Headers) -> None:
    """Remove what was said to the balancer alone (RFC 9110, 7.6.1), also what `Connection` names as such.

    What mitmproxy itself acts on stays: the framing, and whether the connection is kept or upgraded.
    """
    named: set[str] = set()
    if (connection := headers.get("connection")) is not None:
        named = {token.strip().lower() for token in connection.split(",")}
        if kept := ", ".join(sorted(named & _OF_CONNECTIONS)):
            headers["connection"] = kept  # in lower case, or mitmproxy would not see it
        else:
            del headers["connection"]
    if "h2c" in headers.get("upgrade", "").lower():
        # A tunnel past the balancer. mitmproxy's own filter for it misses a header that comes twice.
        del headers["upgrade"]
        headers.pop("http2-settings", None)
    for name in {name.lower() for name in headers} & ((named | _HOP_BY_HOP) - _FRAMING):
        del headers[name]


def check_head(request: http.Request) -> None:
    """Refuse what mitmproxy would send on as it came: control characters, folded lines, odd words.

    Raises Malformed.
    """
    data = request.data
    if not (
        _TOKEN.fullmatch(data.method)
        and _TARGET.fullmatch(data.path)
        and data.http_version in _VERSIONS
        and not any(_CONTROL.search(value) for _, value in data.headers.fields)
    ):
        raise Malformed("The request line or a header holds characters that are not allowed there.")
