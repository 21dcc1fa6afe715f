"""Endpoints that the configuration does not name one by one: addresses of DNS names, lists in other files."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2s
from pathlib import Path
from typing import Self

from lb_core.config import DnsEndpoints
from lb_core.dns import USUAL_ASKING, Asking, NameWatch, Resolve, resolve
from lb_core.errors import ConfigError, Problem
from lb_core.types import Endpoint
from lb_core.watch import INTERVAL_S, FileWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointList:
    """What a list of endpoints holds, in the configuration or in a file."""

    endpoints: tuple[Endpoint, ...] = ()
    dns: tuple[DnsEndpoints, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointsFile:
    """A file with a list of endpoints. `load` runs in a thread and raises ConfigError for a bad file."""

    path: Path
    load: Callable[[Path], EndpointList]


def members(lists: Iterable[EndpointList], addresses: Mapping[str, tuple[str, ...]]) -> tuple[Endpoint, ...]:
    """All endpoints of `lists`, each name and URL once: first those that are listed, in order.

    `addresses` is what is known of DNS names.
    """
    lists = tuple(lists)
    found: dict[str, Endpoint] = {}
    urls: set[tuple[str, str, int]] = set()
    for endpoint in (endpoint for listed in lists for endpoint in listed.endpoints):
        if endpoint.name not in found and _url(endpoint) not in urls:
            found[endpoint.name] = endpoint
            urls.add(_url(endpoint))
    taken = {(endpoint.scheme, endpoint.host, endpoint.port) for endpoint in found.values()}
    for template in (dns.template for listed in lists for dns in listed.dns):
        for address in addresses.get(template.host, ()):
            place = (template.scheme, address, template.port)
            if place not in taken:
                name = _member_name(template, address, found)
                found[name] = replace(template, name=name, host=address, server_name=template.host)
                taken.add(place)
    return tuple(found.values())


def _url(endpoint: Endpoint) -> tuple[str, str, int]:
    """As it was written: two names may lead to one address."""
    return endpoint.scheme, endpoint.server_name or endpoint.host, endpoint.port


def _member_name(template: Endpoint, address: str, taken: Collection[str]) -> str:
    """It tells no address, because clients are shown names. More than 6 digits only where those are taken."""
    digits = blake2s(f"{address}:{template.port}".encode()).hexdigest()
    names = (f"{template.name}-{digits[:length]}" for length in range(6, len(digits) + 1))
    return next(name for name in names if name not in taken)


class Discovery:
    """Keeps the members of one cluster: those that are listed, those of a file, those that DNS names have.

    `on_members` is told the cluster's name and all its `members`, on the event loop, whenever they change.
    A bad file changes nothing and is logged once; one that clashes with the configuration is bad.

    `after` is the discovery that this one replaces in a reload: what that has learnt of the same names and
    the same file is in `members` from the beginning, so that nothing disappears for a moment.
    """

    def __init__(
        self,
        cluster: str,
        listed: EndpointList,
        on_members: Callable[[str, tuple[Endpoint, ...]], None],
        *,
        file: EndpointsFile | None = None,
        after: Self | None = None,
        resolve: Resolve = resolve,
        asking: Asking = USUAL_ASKING,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`asking` is about names, `interval_s` about the file."""
        self._cluster = cluster
        self._listed = listed
        self._on_members = on_members
        self._resolve = resolve
        self._asking = asking
        self._names: dict[str, NameWatch] = {}
        self._path = file.path if file else None
        self._watch = (
            FileWatch(file.path, file.load, self._good, self._bad, interval_s=interval_s) if file else None
        )
        self._file_read = asyncio.Event()
        self._file_is_bad = False
        self._in_file = EndpointList()
        self._retired = False
        self._addresses: dict[str, tuple[str, ...]] = {}
        if after is not None:
            if after._path == self._path:
                self._in_file = after._in_file
            self._addresses = {host: after._addresses.get(host, ()) for host in self._hosts()}
        self.members = self._members()

    def start(self) -> None:
        """Begin to read and to ask. Needs a running event loop."""
        self._follow()
        if self._watch is not None:
            self._watch.reload_now()
            self._watch.start()

    async def settled(self) -> None:
        """Wait until the file was read and every name was asked for once, for `timeout_s` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._asking.timeout_s):
                if self._watch is not None:
                    await self._file_read.wait()
                for name in tuple(self._names.values()):
                    await name.asked.wait()

    def retire(self) -> None:
        """Tell nothing more: another one follows the cluster, or it is gone. `stop` is to come."""
        self._retired = True

    async def stop(self) -> None:
        """Follow nothing more; `on_members` is not called again."""
        for name in self._names.values():
            name.stop()
        if self._watch is not None:
            await self._watch.stop()

    def _hosts(self) -> set[str]:
        return {dns.template.host for listed in (self._listed, self._in_file) for dns in listed.dns}

    def _follow(self) -> None:
        """Ask for the names that are listed now, and for no others."""
        hosts = self._hosts()
        for host in self._names.keys() - hosts:
            self._names.pop(host).stop()
            self._addresses.pop(host, None)
        for host in sorted(hosts - self._names.keys()):
            known = self._addresses.get(host, ())
            name = NameWatch(host, self._resolve, self._answered, addresses=known, asking=self._asking)
            name.start()
            self._names[host] = name

    def _answered(self, host: str, addresses: tuple[str, ...]) -> None:
        self._addresses[host] = addresses
        self._update()

    def _good(self, listed: EndpointList) -> None:
        self._check_apart(listed)
        if self._file_is_bad:
            self._file_is_bad = False
            logger.info("Cluster %s: its endpoints file %s is good again.", self._cluster, self._path)
        self._in_file = listed
        self._follow()
        self._file_read.set()
        self._update()

    def _bad(self, error: ConfigError) -> None:
        self._file_is_bad = True
        self._file_read.set()
        # No error: mitmproxy ends at one that is logged while it starts, and the file may be good any moment.
        logger.warning("Cluster %s keeps its endpoints, its file cannot be used: %s", self._cluster, error)

    def _check_apart(self, listed: EndpointList) -> None:
        """Raises ConfigError for what the file and the configuration both hold."""
        own = (*self._listed.endpoints, *(dns.template for dns in self._listed.dns))
        names = {endpoint.name for endpoint in own}
        urls = {_url(endpoint) for endpoint in own}
        problems = tuple(
            Problem("", f"'{endpoint.name}' has the name or the URL of an endpoint of the configuration")
            for endpoint in (*listed.endpoints, *(dns.template for dns in listed.dns))
            if endpoint.name in names or _url(endpoint) in urls
        )
        if problems:
            raise ConfigError(str(self._path), problems)

    def _members(self) -> tuple[Endpoint, ...]:
        return members((self._listed, self._in_file), self._addresses)

    def _update(self) -> None:
        if self._retired:
            return
        before, self.members = self.members, self._members()
        if self.members == before:
            return
        old, new = ({endpoint.name for endpoint in group} for group in (before, self.members))
        count, came, went = len(new), len(new - old), len(old - new)
        logger.info("Cluster %s has %d endpoints: %d new, %d gone.", self._cluster, count, came, went)
        self._on_members(self._cluster, self.members)
