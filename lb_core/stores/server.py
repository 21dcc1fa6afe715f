"""Where a Redis server is: what its URL says, and who the master is behind a cluster or sentinels."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from redis.crc import key_slot

from lb_core.stores.wire import Refused, Reply, ServerAway, Wire


class RedisSettings(Protocol):
    """What the configuration says of a server; equal values are the same server."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def username(self) -> str: ...
    @property
    def password(self) -> str: ...
    @property
    def database(self) -> int: ...
    @property
    def timeout_ms(self) -> int: ...
    @property
    def url(self) -> str | None: ...
    @property
    def located(self) -> tuple[tuple[str, str], ...]: ...


type Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to. `kind` is `plain`, `cluster` or `sentinel`; `service` is for sentinels."""

    kind: str
    addresses: tuple[Address, ...]
    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    service: str = ""
    tls: ssl.SSLContext | None = None
    sentinel_password: str = field(default="", repr=False)
    located: Mapping[str, str] = field(default_factory=dict)
    """Names of servers in lower case → the addresses to connect to."""

    @classmethod
    def of(cls, settings: RedisSettings) -> "Server":
        """Read the settings. Raises ValueError, without the URL, when the URL cannot be used.

        `redis+sentinel://user:password@s1:26379,s2:26379/<service>/<database>`; the options are `tls=true`
        (cluster, sentinel), `ssl_ca_certs=<file>`, `ssl_cert_reqs=none` and `sentinel_password=…`.
        """
        if settings.url is None:
            address = (settings.host, settings.port)
            return cls("plain", (address,), settings.username, settings.password, settings.database)
        scheme, _, rest = settings.url.partition("://")
        kind = {"redis+cluster": "cluster", "redis+sentinel": "sentinel"}.get(scheme.lower(), "plain")
        parts = urlsplit(f"//{rest}")
        options = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = credentials.partition(":")
        path = parts.path.strip("/").split("/")
        service = path.pop(0) if kind == "sentinel" else ""
        database = path[0] if path and path[0] else options.get("db", "0")
        return cls(
            kind,
            tuple(_address(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",")),
            unquote(username),
            unquote(password),
            int(database),
            unquote(service) or "mymaster",
            _tls(options) if scheme.lower() == "rediss" or options.get("tls") == "true" else None,
            options.get("sentinel_password", ""),
            dict(settings.located),
        )

    async def master(self, key: str, *, first: int = 0) -> Address:
        """Who may write this key now. Raises OSError, ServerAway or Refused when nobody can tell.

        There is no limit of time, and one that is silent is not left. Whoever gives up passes the next number
        as `first`, at whose address the asking begins: they are taken in turn.
        """
        if self.kind == "plain":
            return self.addresses[0]
        problem: Exception = ServerAway("no server knows the master")
        first %= len(self.addresses)
        for address in self.addresses[first:] + self.addresses[:first]:
            try:
                found = await self._ask(address, key)
            except (OSError, ServerAway, Refused) as error:
                problem = error
                continue
            if found is not None:
                return found
        raise problem

    async def connect(self, address: Address) -> Wire:
        """Open a connection to one of the servers; TLS keeps its name. Raises OSError."""
        name, port = address
        return await Wire.connect(self.located.get(name.lower(), name), port, self.tls, server_name=name)

    async def _ask(self, address: Address, key: str) -> Address | None:
        wire = await self.connect(address)
        try:
            if self.kind == "sentinel":
                if self.sentinel_password:
                    await wire.call("AUTH", self.sentinel_password)
                reply = await wire.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                return None if reply is None else (reply[0].decode(), int(reply[1]))
            await self.log_in(wire)
            return _owner(await wire.call("CLUSTER", "SLOTS"), key_slot(key.encode()), address[0])
        finally:
            wire.abort()

    async def log_in(self, wire: Wire) -> None:
        """Authenticate and choose the database. Raises ServerAway or Refused."""
        if self.username and self.password:
            await wire.call("AUTH", self.username, self.password)
        elif self.password:
            await wire.call("AUTH", self.password)
        if self.database:
            await wire.call("SELECT", self.database)


def _owner(slots: Reply, slot: int, asked: str) -> Address | None:
    for first, last, master, *_ in slots:
        if first <= slot <= last:
            return (master[0] or b"").decode() or asked, int(master[1])
    return None


def _address(text: str, default_port: int) -> Address:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    return (host if colon else text).strip("[]"), int(port) if colon else default_port


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    except ssl.SSLError:
        raise ValueError("ssl_ca_certs holds no certificate") from None
    except OSError as error:
        raise ValueError(f"ssl_ca_certs cannot be read: {error.strerror}") from None
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
