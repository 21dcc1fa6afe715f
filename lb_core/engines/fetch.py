"""One page by HTTP, bounded in time, in bytes and in what it follows. Blocking, for the scraper's threads."""

import logging
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from lb_core.engines.model import LATE
from lb_core.trust import trusting

LARGEST_PAGE = 4 << 20
"""Decoded bytes. The largest real pages have some hundred kB."""
_PIECE = 1 << 16

# At DEBUG it logs paths of every scrape; at WARNING it repeats headers that it cannot read.
logging.getLogger("urllib3").setLevel(logging.ERROR)
# Who sets mitmproxy to trust everybody knows it; the warning repeats the endpoint's address.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)


class PageError(Exception):
    """There is no page. The text is for logs and repeats nothing that the server or a header said."""


def check_request(url: str, headers: Mapping[str, str]) -> None:
    """Raises ValueError where no request can be made of these; repeats neither."""
    try:
        requests.Request("GET", url, headers=dict(headers)).prepare()
    except (requests.RequestException, ValueError):
        raise ValueError("not an http URL, or a header that HTTP does not allow") from None


class Fetcher:
    """Gets one URL again and again over one kept connection.

    `timeout_s` bounds each wait on the socket; the whole is bounded by whoever calls `abort` in time, from
    another thread. Headers that drip byte by byte can be stopped in no other way. `address` is where to
    connect to in place of the URL's host, whose name the server hears all the same. `tls` is for https; None
    trusts what is trusted by default.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        address: str | None = None,
        timeout_s: float = 1.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._tls = tls or trusting()
        self._address = address
        self._connection: Any = None
        self._aborted = False
        self._session = requests.Session()
        self._session.trust_env = False  # neither proxies nor .netrc
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        usual = {"Accept-Encoding": "identity", "Host": urlsplit(url).netloc}
        self._request = self._session.prepare_request(
            requests.Request("GET", url, headers={**usual, **(headers or {})})
        )
        pool: Any = adapter.get_connection_with_tls_context(self._request, verify=True)
        self._make = pool.ConnectionCls
        pool.ConnectionCls = self._connect  # a factory does as well as a class, and knows what it made

    def fetch(self) -> bytes:
        """The page, decoded. Raises PageError for whatever else comes, or does not come."""
        self._aborted = False
        try:
            with self._session.send(
                self._request,
                stream=True,
                timeout=(self._timeout_s, self._timeout_s),
                allow_redirects=False,
            ) as response:
                if response.status_code != 200:
                    raise PageError(f"HTTP {response.status_code}")
                return self._body(response)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # ValueError: http.client's and urllib3's own for a length or a chunk that is no number.
            raise PageError(LATE if self._late(error) else "no connection") from None
        except zlib.error:
            raise PageError("a body that cannot be decoded") from None

    def abort(self) -> None:
        """End the fetch that is going on in another thread. Harmless when none is."""
        self._aborted = True
        sock = self._connection.sock if self._connection else None
        if isinstance(sock, socket.socket):
            try:
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; close would not
            except OSError:  # closed already, or in the middle of its TLS handshake
                return

    def close(self) -> None:
        """Close the connection; the next fetch opens another."""
        self._session.close()

    def _connect(self, *, host: str, **more: Any) -> Any:
        if issubclass(self._make, urllib3.connection.HTTPSConnection):
            # It would make a context of its own for each connection, and trust requests' own list beside.
            more |= {"ssl_context": self._tls, "cert_reqs": None, "ca_certs": None, "ca_cert_dir": None}
            if self._address is not None:
                more["server_hostname"] = host
        host = self._address or host
        self._connection = self._make(host=host, **more)
        return self._connection

    def _late(self, error: Exception) -> bool:
        return self._aborted or isinstance(
            error, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError
        )

    def _body(self, response: requests.Response) -> bytes:
        decode = _decoder(response.headers.get("Content-Encoding", ""))
        pieces: list[bytes] = []
        room = LARGEST_PAGE
        while piece := response.raw.read1(_PIECE, decode_content=False):
            if self._aborted:
                break
            decoded = decode(piece, room + 1)
            room -= len(decoded)
            if room < 0:
                raise PageError("too large")
            pieces.append(decoded)
        if self._aborted:
            raise PageError(LATE)
        return b"".join(pieces)


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """Some servers compress though they were asked not to. `room` bounds what comes out, not what goes in."""
    match encoding.strip().lower():
        case "" | "identity":
            return lambda piece, room: piece
        case "gzip" | "x-gzip" | "deflate":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress
    raise PageError("an encoding that was not asked for")
