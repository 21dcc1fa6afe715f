"""A proxy with the failover layer, and an addon that answers its questions from a list."""

import asyncio
import socket
import struct
from collections.abc import Sequence
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Self

from mitmproxy import connection, http, options
from mitmproxy.proxy import layer
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.tools.dump import DumpMaster

from addons import failover
from addons.failover import leaks
from addons.failover.held import DRAIN_S
from addons.failover.timers import ConnectTimeouts
from addons.headers import is_event_stream
from lb_core.retry import RetryConfig
from tests.addon.engine import ScriptedEngine
from tests.waiting import free_port, until

BODY = b'{"model":"m","stream":true,"messages":[]}'
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: api.test\r\ncontent-length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
ENDINGS = frozenset({"response", "error"})


def hold_s(flow: http.HTTPFlow, response: http.Response) -> float | None:
    """What the addon of the product says where nothing is configured."""
    if response.status_code == 200:
        return inf if is_event_stream(response.headers) else None
    return DRAIN_S if response.status_code in RetryConfig().on_statuses else None


class Asked:
    """Sends each flow to the first port, then, asked again, to the next, as long as there are some."""

    def __init__(self, ports: Sequence[int], *, connect_timeout_s: float = 1.0) -> None:
        self.ports = list(ports)
        self.questions: list[failover.Question] = []
        self.hooks: dict[str, list[str]] = {}
        self.flows: list[http.HTTPFlow] = []
        self.left: dict[str, list[int]] = {}
        self.answers_after_s = 0.0
        self.connected = 0
        self.connecting = 0
        self.timeouts = ConnectTimeouts(lambda data: connect_timeout_s)
        self.scheme = "http"

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        failover.next_layer(nextlayer, hold_s=hold_s)

    def request(self, flow: http.HTTPFlow) -> None:
        self.hooks[flow.id] = ["request"]
        self.flows.append(flow)
        self.left[flow.id] = list(self.ports)
        self._direct(flow)

    def _direct(self, flow: http.HTTPFlow) -> None:
        flow.request.data.host = "127.0.0.1"
        flow.request.data.port = self.left[flow.id].pop(0)
        flow.request.scheme = self.scheme

    async def ai_lb_retry(self, question: failover.Question) -> None:
        assert question.flow.response is None
        self.questions.append(question)
        if self.answers_after_s:
            await asyncio.sleep(self.answers_after_s)
        if self.left[question.flow.id]:
            self._direct(question.flow)
            question.again = True

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        self.hooks[flow.id].append("responseheaders")
        assert flow.response is not None
        if flow.response.headers.get("content-type") == "text/event-stream":
            flow.response.stream = True

    def response(self, flow: http.HTTPFlow) -> None:
        self.hooks[flow.id].append("response")

    def error(self, flow: http.HTTPFlow) -> None:
        self.hooks.setdefault(flow.id, []).append("error")

    def server_connect(self, data: ServerConnectionHookData) -> None:
        self.connecting += 1
        self.timeouts.server_connect(data)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        self.connecting -= 1
        self.connected += 1
        self.timeouts.server_connected(data)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        self.connecting -= 1
        self.timeouts.server_connect_error(data)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        self.connected -= 1
        self.timeouts.server_disconnected(data)
        leaks.server_disconnected(data)

    def client_disconnected(self, client: connection.Client) -> None:
        leaks.client_disconnected(client)

    def endings(self) -> list[str]:
        """How each flow ended; one that ended not once fails the test."""
        for hooks in self.hooks.values():
            assert hooks.count("request") <= 1
            assert hooks.count("responseheaders") <= 1, hooks
            assert sum(hook in ENDINGS for hook in hooks) == 1, hooks
        return [hooks[-1] for hooks in self.hooks.values()]

    def all_ended(self) -> bool:
        return all(ENDINGS.intersection(hooks) for hooks in self.hooks.values())


class Proxied:
    """`async with Proxied(folder, engine_or_port, ...) as its`: a proxy before them, in this order."""

    def __init__(
        self,
        folder: Path,
        *engines: ScriptedEngine | int,
        asked: Asked | None = None,
        more: Sequence[object] = (),
        **settings: object,
    ) -> None:
        ports = [engine if isinstance(engine, int) else engine.port for engine in engines]
        self.asked = asked or Asked(ports)
        self.port = free_port()
        self._confdir = folder.parent / "mitmproxy"
        self._more = more
        self._settings = settings

    async def __aenter__(self) -> Self:
        opts = options.Options(
            confdir=str(self._confdir),
            listen_host="127.0.0.1",
            listen_port=self.port,
            mode=["reverse:http://lb.invalid:1"],
        )
        self.master = DumpMaster(opts, with_termlog=False, with_dumper=False)
        self.master.addons.add(self.asked, *self._more)
        chain = self.master.addons.chain  # as with a script: before mitmproxy decides on the layer
        chain.remove(self.asked)
        chain.insert(0, self.asked)
        opts.update(connection_strategy="lazy", **self._settings)
        self._task = asyncio.create_task(self.master.run())
        self.proxyserver = self.master.addons.get("proxyserver")
        await until(lambda: self.proxyserver.listen_addrs(), "the proxy serves")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await until(lambda: not self.proxyserver.connections, "clients are gone")
        self.master.shutdown()
        await self._task

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, raw: bytes = CHAT) -> bytes:
        """Send a request on a connection of its own and read all until the end."""
        reader, writer = await self.connect()
        writer.write(raw.replace(b"\r\nhost", b"\r\nconnection: close\r\nhost", 1))
        try:
            async with asyncio.timeout(10):
                return await reader.read()
        finally:
            writer.close()

    def http_layer(self) -> failover.FailoverLayer:
        """The layer of the one client there is."""
        (handler,) = self.proxyserver.connections.values()
        layer = handler.layer
        while not isinstance(layer, failover.FailoverLayer):
            layer = getattr(layer, "layer", None) or layer.child_layer
        return layer

    async def settled(self, *endings: str) -> None:
        """All flows ended, in this way; no connection to an endpoint is left."""
        asked = self.asked
        await until(asked.all_ended, "all flows ended")
        assert asked.endings() == list(endings)
        await until(lambda: not self.proxyserver.connections, "the client's connections are closed")
        await until(lambda: not asked.connected, "the connections to the endpoints are closed")
        assert asked.connecting == 0
        assert asked.timeouts._timers == {}

    def causes(self) -> list[str]:
        return [
            question.failure.cause + (f" {question.failure.status}" if question.failure.status else "")
            for question in self.asked.questions
        ]


def status(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def rst(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset."""
    sock: socket.socket = writer.get_extra_info("socket")
    if sock.fileno() < 0:  # closed before us
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class BlackHole:
    """A port whose backlog is full: connecting to it takes for ever."""

    def __enter__(self) -> int:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        port: int = self._listener.getsockname()[1]
        self._fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            self._fillers.append(filler)
        return port

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (*self._fillers, self._listener):
            each.close()
