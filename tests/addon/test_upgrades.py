"""Long sessions over an upgraded connection: all passes, and what passed is not kept."""

import asyncio
import tracemalloc
from pathlib import Path

import aiohttp
from aiohttp import web
from mitmproxy import http, tcp

from tests.addon.engine import ScriptedEngine
from tests.addon.proxy import Proxy
from tests.addon.test_ai_lb import one_cluster
from tests.waiting import free_port, until

SIZE = 65_536


class Sessions:
    """Sees the flows, as mitmweb would."""

    def __init__(self) -> None:
        self.websockets: list[http.HTTPFlow] = []
        self.others: list[tcp.TCPFlow] = []

    def websocket_start(self, flow: http.HTTPFlow) -> None:
        self.websockets.append(flow)

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        self.others.append(flow)


async def _echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False)
    await socket.prepare(request)
    async for message in socket:
        await socket.send_bytes(message.data)
    return socket


async def exchange(folder: Path, messages: int, **settings: str) -> tuple[int, int]:
    """Send so many messages and get them back; gives how many mitmproxy kept, and the peak of memory."""
    app, port = web.Application(), free_port()
    app.router.add_get("/v1/realtime", _echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    sessions = Sessions()
    config = {"clusters": {"c": {"endpoints": [{"name": "echo", "url": f"http://127.0.0.1:{port}"}]}}}
    try:
        async with Proxy(folder, config, sessions, **settings) as proxy, aiohttp.ClientSession() as client:
            async with client.ws_connect(f"{proxy.url}/v1/realtime", compress=0) as socket:
                tracemalloc.start()
                try:
                    for number in range(messages):
                        sent = number.to_bytes(4) * (SIZE // 4)
                        await socket.send_bytes(sent)
                        assert await socket.receive_bytes(timeout=10) == sent
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                assert proxy.in_flight() == 1
            await until(proxy.is_clean, "nothing is in flight")
            data = sessions.websockets[0].websocket
            assert data is not None
            assert data.messages[-1].content == sent
            return len(data.messages), peak
    finally:
        await runner.cleanup()


async def test_of_a_long_websocket_session_the_last_messages_are_kept(tmp_path: Path) -> None:
    kept, peak = await exchange(tmp_path, 400)
    assert kept == 32
    assert peak < 8 << 20


async def test_all_messages_are_kept_where_streams_are(tmp_path: Path) -> None:
    kept, _ = await exchange(tmp_path, 40, store_streamed_bodies="true")
    assert kept == 80


async def test_of_another_upgraded_connection_the_last_pieces_are_kept(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n")
        while data := await reader.read(SIZE):
            writer.write(data)

    sessions = Sessions()
    async with ScriptedEngine(echo) as engine, Proxy(tmp_path, one_cluster(engine), sessions) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET /v1/other HTTP/1.1\r\nhost: a\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        for number in range(100):
            writer.write(b"%04d" % number)
            assert await reader.readexactly(4) == b"%04d" % number
        assert len(sessions.others[0].messages) == 32
        writer.close()
        await until(proxy.is_clean, "nothing is in flight")
