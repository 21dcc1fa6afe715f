"""Connections to Redis end when they are of no use: the server has none of ours left."""

import asyncio

import pytest

from lb_core.stores.link import Link, Links
from lb_core.stores.server import Server
from lb_core.stores.wire import Refused, ServerAway, Wire
from tests.redis.servers import RedisServer, redis_server
from tests.waiting import until


def clients(server: RedisServer) -> int:
    """Connections that the server has, but for that of the test."""
    return len(server.client.client_list()) - 1


async def connected(links: Links, server: RedisServer) -> Link:
    link = links.to(server.config, "k")
    link.start()
    await until(lambda: link.up)
    return link


async def test_a_closed_link_is_closed(links: Links, server: RedisServer) -> None:
    before = clients(server)
    link = await connected(links, server)
    assert clients(server) == before + 1
    async with asyncio.timeout(2):
        await link.close()
    assert not link.up
    await until(lambda: clients(server) == before)


async def test_all_links_are_closed(links: Links, server: RedisServer, own_server: RedisServer) -> None:
    made = [await connected(links, each) for each in (server, own_server)]
    await links.close()
    assert not [link for link in made if link.up]


async def test_a_connection_that_is_of_no_use_is_closed(links: Links, own_server: RedisServer) -> None:
    with redis_server("--replicaof", "127.0.0.1", str(own_server.port)) as replica:
        link = links.to(replica.config, "k")
        await link.settled()
        await asyncio.sleep(0.1)
        assert not link.up
        await until(lambda: not [each for each in replica.client.client_list() if each["cmd"] == "info"])


async def test_a_connection_to_what_became_a_replica_is_dropped(
    links: Links, server: RedisServer, own_server: RedisServer
) -> None:
    link = await connected(links, own_server)
    wire = link._wire
    assert wire is not None
    own_server.client.execute_command("REPLICAOF", "127.0.0.1", str(server.port))
    with pytest.raises(Refused, match="READONLY"):
        await link.call("SET", "k", "v")
    await until(wire.lost.done)


async def test_a_connection_on_which_nothing_comes_is_dropped(links: Links, own_server: RedisServer) -> None:
    link = await connected(links, own_server)
    wire = link._wire
    assert wire is not None
    own_server.freeze()
    for _ in range(2):
        with pytest.raises(ServerAway):
            await link.call("PING")
    assert not link.up
    await until(wire.lost.done, within_s=8)
    own_server.thaw()


async def test_a_slow_server_is_left_alone(
    links: Links, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await connected(links, server)
    monkeypatch.setattr("lb_core.stores.breaker.SLOW_S", 0)
    for _ in range(3):
        await link.call("PING")
    assert not link.up


async def test_who_is_asked_for_the_master_is_left_again(server: RedisServer) -> None:
    before = clients(server)
    asked = Server("sentinel", (("127.0.0.1", server.port),), service="mymaster")
    with pytest.raises(Refused):
        await asked.master("k")
    await until(lambda: clients(server) == before)


async def test_what_answers_unasked_is_left() -> None:
    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(chatty, "127.0.0.1", 0) as listener:
        wire = await Wire.connect("127.0.0.1", listener.sockets[0].getsockname()[1], None, server_name="")
        try:
            async with asyncio.timeout(2):
                await asyncio.shield(wire.lost)
        finally:
            wire.abort()


async def test_calls_end_with_their_connection() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(rude, "127.0.0.1", 0) as listener:
        wire = await Wire.connect("127.0.0.1", listener.sockets[0].getsockname()[1], None, server_name="")
        async with asyncio.timeout(2):
            with pytest.raises(ServerAway):
                await wire.call("PING")
