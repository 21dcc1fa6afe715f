"""How a server is found, shared, left alone and joined again."""

import asyncio
import datetime
import logging
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lb_core.config.addresses import redis_url
from lb_core.config.model import RedisConfig
from lb_core.stores.link import Links
from lb_core.stores.server import Server
from tests.core.build import endpoints
from tests.fault_proxy import FaultProxy
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import PASSWORD, RedisServer, counts_in, redis_server
from tests.waiting import free_port, until, wait_until

ACL = (
    "+evalsha +eval +script|load +ping +info +select +set +type +time"
    " +zmscore +zscore +zincrby +zadd +zrem +zcard +zrange +zrangebyscore"
    " +hget +hset +hdel +hlen +hkeys +hvals +hrandfield +expire"
)


async def works(fleet: Fleet, config: RedisConfig, seen_at: RedisServer) -> None:
    store = await fleet.add(config)
    for _ in range(4):
        await fleet.acquire(store, equal(*endpoints(4)))
    assert store.stats.fallbacks == 0
    assert sum(counts_in(seen_at.client, "c").values()) == 4
    await asyncio.sleep(0.1)
    assert store.stats.errors == 0


async def test_by_host_and_port(fleet: Fleet, server: RedisServer) -> None:
    await works(fleet, server.config, server)


async def test_by_url_with_a_user_a_password_and_a_database(fleet: Fleet, own_server: RedisServer) -> None:
    rights = ("on", f">{PASSWORD}", "~{ai_lb:*", *ACL.split())
    own_server.client.execute_command("ACL", "SETUSER", "balancer", *rights)
    config = redis_url(f"redis://balancer:{PASSWORD}@127.0.0.1:{own_server.port}/3", timeout_ms=3000)
    store = await fleet.add(config)
    await fleet.acquire(store, equal(*endpoints(4)))
    assert store.stats.fallbacks == 0
    own_server.client.select(3)
    assert await store._ledger.fsck() == 0
    assert await store._ledger.may_check(1000)
    assert await store._ledger.reap(store.owner) == 1
    assert await store._ledger.wrong_key() is None
    assert store.stats.errors == 0


async def test_a_user_who_may_nothing_is_no_error_for_clients(
    fleet: Fleet, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.client.execute_command("ACL", "SETUSER", "nobody", "on", f">{PASSWORD}", "+ping")
    config = RedisConfig("127.0.0.1", own_server.port, "nobody", PASSWORD)
    store = await fleet.add(config)
    for _ in range(5):
        await fleet.acquire(store, equal(*endpoints(4)))
    assert store.stats.fallbacks == 5
    assert not store.stats.shared
    assert caplog.text.count("NOPERM") == 1
    assert PASSWORD not in caplog.text


async def test_over_tls(fleet: Fleet, server: RedisServer, tmp_path: Path) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with FaultProxy(("127.0.0.1", server.port), tls=context) as proxy:
        url = f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={certificate}"
        await works(fleet, redis_url(url, timeout_ms=3000), server)
        untrusted = await fleet.add(redis_url(f"rediss://localhost:{proxy.port}", timeout_ms=3000))
        await fleet.acquire(untrusted, equal(*endpoints(4)))
        assert untrusted.stats.fallbacks == 1, "a certificate that nobody vouches for is not accepted"


async def test_over_tls_at_the_address_that_hosts_give_to_the_name(
    fleet: Fleet, server: RedisServer, tmp_path: Path
) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    async with FaultProxy(("127.0.0.1", server.port), tls=context) as proxy:
        url = f"rediss://redis.test:{proxy.port}/0?ssl_ca_certs={certificate}&ssl_cert_reqs=none"
        await works(fleet, redis_url(url, timeout_ms=3000, hosts={"redis.test": "127.0.0.1"}), server)
    assert set(asked) == {"redis.test"}


async def test_a_master_that_sentinels_name_is_found_where_hosts_say() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"*2\r\n$11\r\nmaster.test\r\n$4\r\n6379\r\n")

    sentinel = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = sentinel.sockets[0].getsockname()[1]
    hosts = {"s.test": "127.0.0.1", "master.test": "127.0.0.1"}
    found = Server.of(redis_url(f"redis+sentinel://s.test:{port}/m/0", timeout_ms=3000, hosts=hosts))
    assert await found.master("k") == ("master.test", 6379)
    assert found.located["master.test"] == "127.0.0.1"
    sentinel.close()


def self_signed(folder: Path) -> Path:
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "t")]),
    )
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "server.pem"
    path.write_bytes(private + certificate.public_bytes(pem))
    return path


@pytest.fixture
def sentinel(own_server: RedisServer, tmp_path: Path) -> Iterator[tuple[int, RedisServer]]:
    """One sentinel that watches a master with a replica; its port, and the replica."""
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {own_server.port} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
    )
    with redis_server("--replicaof", "127.0.0.1", str(own_server.port)) as replica:
        watcher = RedisServer(port=port)
        process = subprocess.Popen(
            [watcher.binary, str(config), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up")
            wait_until(watcher.answers)
            wait_until(lambda: watcher.client.sentinel_slaves("main"), within_s=15)
            yield port, replica
        finally:
            process.kill()
            process.wait()
            watcher.stop()


async def test_through_sentinels_and_after_their_failover(
    fleet: Fleet, own_server: RedisServer, sentinel: tuple[int, RedisServer]
) -> None:
    port, replica = sentinel
    config = redis_url(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/main/0", timeout_ms=3000)
    await works(fleet, config, own_server)
    own_server.kill()
    await fleet.acquire(fleet.stores[0], equal(*endpoints(4)))
    await until(lambda: fleet.exact(replica), within_s=20)
    assert sum(counts_in(replica.client, "c").values()) == 5


async def test_a_replica_is_not_joined(
    fleet: Fleet, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica:
        store = await fleet.add(replica.config)
        await fleet.acquire(store, equal(*endpoints(4)))
        assert store.stats.fallbacks == 1
        assert "it is a replica" in caplog.text


async def test_all_that_name_one_server_share_one_connection(links: Links, server: RedisServer) -> None:
    by_host = RedisConfig("127.0.0.1", server.port)
    by_url = redis_url(f"redis://127.0.0.1:{server.port}/0", timeout_ms=500)
    assert links.to(by_host, "{ai_lb:a}:s") is links.to(by_url, "{ai_lb:b}:s")
    assert links.to(by_host, "k") is not links.to(RedisConfig("127.0.0.1", server.port, database=1), "k")


async def test_in_a_redis_cluster_each_pool_has_its_connection(links: Links, server: RedisServer) -> None:
    config = server.url("redis+cluster")
    assert links.to(config, "{ai_lb:a}:s") is links.to(config, "{ai_lb:a}:s")
    assert links.to(config, "{ai_lb:a}:s") is not links.to(config, "{ai_lb:b}:s")


async def test_a_server_that_may_evict_is_warned_of_once(
    fleet: Fleet, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_server.client.config_set("maxmemory-policy", "allkeys-random")
    store = await fleet.add(own_server.config)
    await fleet.acquire(store, equal(*endpoints(4)))
    own_server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await asyncio.sleep(0.1)
    await until(lambda: store.stats.shared)
    assert caplog.text.count("may evict") == 1


async def test_a_server_that_is_loading_is_waited_for(fleet: Fleet, links: Links) -> None:
    """What answers every command with an error is asked again, and nobody is told but the log."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(b"-LOADING Redis is loading the dataset in memory\r\n" * 3)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = await fleet.add(RedisConfig("127.0.0.1", server.sockets[0].getsockname()[1]))
    await fleet.acquire(store, equal(*endpoints(4)))
    assert store.stats.fallbacks == 1
    server.close()


async def test_what_is_not_a_redis_server_is_no_error_for_clients(fleet: Fleet) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = await fleet.add(RedisConfig("127.0.0.1", server.sockets[0].getsockname()[1]))
    await fleet.acquire(store, equal(*endpoints(4)))
    assert store.stats.fallbacks == 1
    server.close()


def test_a_server_is_read_from_its_url(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"redis+sentinel://me:{PASSWORD}%21@s1,[::1]:99/main/2?sentinel_password=x"
    server = Server.of(redis_url(url, timeout_ms=3000))
    assert (server.kind, server.addresses) == ("sentinel", (("s1", 26379), ("::1", 99)))
    assert (server.username, server.password, server.service, server.database) == (
        "me",
        f"{PASSWORD}!",
        "main",
        2,
    )
    assert PASSWORD not in repr(server)
    assert Server.of(redis_url("redis+cluster://h", timeout_ms=1)).addresses == (("h", 6379),)


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
async def test_one_that_accepts_and_is_silent_does_not_keep_the_others_from_being_asked(
    links: Links, cluster: list[RedisServer], sentinel: tuple[int, RedisServer], kind: str
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as first:
        port = first.sockets[0].getsockname()[1]
        name, second = ("", cluster[0].port) if kind == "cluster" else ("/main/0", sentinel[0])
        url = f"redis+{kind}://127.0.0.1:{port},127.0.0.1:{second}{name}"
        link = links.to(redis_url(url, timeout_ms=3000), "k")
        link.start()
        await until(lambda: link.up, within_s=30)
