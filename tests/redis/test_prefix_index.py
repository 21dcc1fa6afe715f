"""The index of prefixes on a real server."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator

import pytest
import redis

from lb_core.prefix.finder import PrefixFinder
from lb_core.prefix.keys import Scope, chain, hash_key
from lb_core.prefix.redis import RedisPrefixIndex
from lb_core.stores.link import Link, Links
from lb_core.stores.scripts import Script
from lb_core.stores.wire import ServerAway
from lb_core.types import PrefixMatch
from tests.core.build import endpoints
from tests.core.test_prefix_finder import Lane, Message, asking, reply, user
from tests.core.test_prefix_index import TTL_S, IndexContract, made
from tests.redis.servers import RedisServer, owner_of
from tests.waiting import until

HEAD = "{ai_lb:c}:"


async def connected(links: Links, server: RedisServer) -> Link:
    link = links.to(server.config, HEAD + "s")
    link.start()
    await until(lambda: link.up)
    return link


@pytest.fixture
async def link(links: Links, server: RedisServer) -> Link:
    return await connected(links, server)


@pytest.fixture
async def index(link: Link) -> AsyncIterator[RedisPrefixIndex]:
    made = RedisPrefixIndex(link, "c", ttl_s=TTL_S)
    yield made
    await made.close()


async def put(index: RedisPrefixIndex, keys: tuple[bytes, ...], endpoint: str) -> None:
    index.record(keys, endpoint)
    await index.close()


class TestRedis(IndexContract):
    @pytest.fixture(autouse=True)
    def _server_of_the_test(self, server: RedisServer) -> None:
        self._client = server.client

    async def pass_time(self, seconds: float) -> None:
        for name in self._client.scan_iter(match=HEAD + "p:*"):
            left = self._client.ttl(name)  # rounded, so that what the test itself takes does not count
            assert left > 0, "every entry expires"
            self._client.expire(name, left - int(seconds))


async def test_two_balancers_see_each_others_entries_and_one_secret(
    links: Links, server: RedisServer
) -> None:
    link = await connected(links, server)
    one, two = RedisPrefixIndex(link, "c"), RedisPrefixIndex(link, "c")
    secrets = await asyncio.gather(one.secret(), two.secret(), one.secret(), two.secret())
    assert len(set(secrets)) == 1
    await put(one, made(1), "a")
    assert await two.match(made(1)) == (PrefixMatch("a", 1, 1),)


async def test_h6_a_cluster_does_not_see_the_entries_of_another(link: Link) -> None:
    one, two = RedisPrefixIndex(link, "c"), RedisPrefixIndex(link, "d")
    await put(one, made(1), "a")
    assert await two.match(made(1)) == ()
    assert await one.secret() != await two.secret()


async def test_a_restart_that_one_balancer_saw_is_known_to_all(link: Link) -> None:
    one, two = RedisPrefixIndex(link, "c"), RedisPrefixIndex(link, "c")
    await put(one, made(1), "a")
    assert await two.match(made(1))
    one.forget("a")
    await one.close()
    assert await two.match(made(1)) == ()
    assert await RedisPrefixIndex(link, "c").match(made(1)) == ()
    await put(two, made(1), "a")
    assert await one.match(made(1)) == (PrefixMatch("a", 1, 1),)


async def test_a_late_record_of_what_was_before_the_restart_does_not_count(link: Link) -> None:
    one, late = RedisPrefixIndex(link, "c"), RedisPrefixIndex(link, "c")
    one.forget("a")
    await one.close()
    await put(late, made(1), "a")  # has not heard of it
    assert await one.match(made(1)) == ()


async def test_every_key_expires_and_names_that_were_forgotten_long_ago_are_dropped(
    index: RedisPrefixIndex, server: RedisServer
) -> None:
    client = server.client
    await index.secret()
    await put(index, made(1), "a")
    for number in range(50):
        index.forget(f"pod-{number}")
    index.forget("a")
    await put(index, made(2), "a")
    names = set(client.scan_iter(match="*"))
    assert names >= {HEAD + "secret", HEAD + "forgotten", HEAD + "forgets"}
    assert {name for name in names if not 0 < client.ttl(name) <= 7 * 24 * 3600} == set()
    assert client.ttl(HEAD + "secret") > client.ttl(HEAD + "forgotten") > TTL_S
    for name in client.zrange(HEAD + "forgotten", 0, -1):
        client.zincrby(HEAD + "forgotten", -3e6 * TTL_S, name)
    index.forget("b")
    await index.close()
    assert client.zrange(HEAD + "forgotten", 0, -1) == ["b"]
    assert await index.match(made(2)) == (PrefixMatch("a", 1, 1),), "recorded since it was forgotten"


async def test_the_secret_is_kept_while_it_is_used(index: RedisPrefixIndex, server: RedisServer) -> None:
    secret = await index.secret()
    server.client.expire(HEAD + "secret", 100)
    await put(index, made(1), "a")
    assert server.client.ttl(HEAD + "secret") > 1000
    assert await RedisPrefixIndex(index._server, "c").secret() == secret


async def test_what_is_forgotten_is_newer_than_all_before_though_the_clock_was_set_back(
    index: RedisPrefixIndex, server: RedisServer
) -> None:
    later = int(time.time() * 1e6) + 10**12
    server.client.set(HEAD + "forgets", later)
    await put(index, made(1), "a")
    index.forget("a")
    await index.close()
    assert int(server.client.get(HEAD + "forgets")) == later + 1
    assert await index.match(made(1)) == ()


async def test_keys_have_one_hash_tag_so_that_a_cluster_takes_them(
    links: Links, cluster: list[RedisServer]
) -> None:
    settings = cluster[0].url("redis+cluster")
    link = links.to(settings, HEAD + "s")
    link.start()
    await until(lambda: link.up)
    index = RedisPrefixIndex(link, "c")
    assert await index.secret()
    await put(index, made(*range(16)), "a")
    assert await index.match(made(*range(16))) == (PrefixMatch("a", 16, 16),)
    assert owner_of(HEAD, cluster).client.dbsize() == 17


async def test_a_200_turn_conversation_costs_the_server_less_than_200_us(
    index: RedisPrefixIndex, server: RedisServer
) -> None:
    rounds = 50
    await index.secret()
    server.client.config_resetstat()
    for number in range(rounds):
        keys = made(*(f"{number}-{cut}" for cut in range(200)))
        assert await index.match(keys) == ()
        await put(index, keys, "a")
    stats = server.client.info("commandstats")
    used = stats["cmdstat_mget"]["usec"] + stats["cmdstat_set"]["usec"]
    assert stats["cmdstat_mget"]["calls"] == rounds, "one call to match"
    assert used / rounds < 200, "with every entry new; measured: 50"


async def test_without_a_server_nothing_is_known_and_nobody_waits(
    links: Links, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    link = await connected(links, own_server)
    index = RedisPrefixIndex(link, "c")
    await put(index, made(1), "a")
    own_server.freeze()
    assert await index.match(made(1)) == ()
    await put(index, made(2), "a")
    own_server.kill()
    for _ in range(3):
        assert await index.match(made(1)) == ()
        await put(index, made(2), "a")
        assert not index._waiting
    index.forget("a")
    await index.close()
    assert await RedisPrefixIndex(link, "c").secret() is None
    finder = PrefixFinder("c", RedisPrefixIndex(link, "c"))
    assert (await finder.find(asking([user("hi")]))).keys == ()
    assert "Traceback" not in caplog.text


async def test_a_restart_seen_while_the_server_was_away_is_told_later(link: Link) -> None:
    class Switched:
        away = False

        def send(self, *command: str | bytes | int) -> asyncio.Future[object]:
            return link.send(*command)

        async def call(self, *command: str | bytes | int) -> object:
            if self.away:
                raise ServerAway("away")
            return await link.call(*command)

        async def run(self, script: Script, keys: tuple[str, ...], *arguments: str | bytes | int) -> object:
            if self.away:
                raise ServerAway("away")
            return await link.run(script, keys, *arguments)

    switched = Switched()
    one, two = RedisPrefixIndex(switched, "c"), RedisPrefixIndex(link, "c")
    await put(one, made(1), "a")
    switched.away = True
    one.forget("a")
    await one.close()
    switched.away = False
    assert await two.match(made(1)) == (PrefixMatch("a", 1, 1),)
    assert await one.match(made(1)) == ()
    await put(one, made(2), "b")
    assert await two.match(made(1)) == ()


async def test_error_replies_are_one_line_in_the_log_each_way_and_no_exception(
    links: Links, own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lb_core.prefix")
    index = RedisPrefixIndex(await connected(links, own_server), "c")
    own_server.client.config_set("maxmemory", "1")
    for _ in range(3):
        await put(index, made(1, 2, 3), "a")
        assert await index.match(made(1)) == ()
        assert not index._waiting
    own_server.client.config_set("maxmemory", "0")
    for _ in range(3):
        await put(index, made(1, 2, 3), "a")
    assert await index.match(made(1)) == (PrefixMatch("a", 1, 1),)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("lb_core.prefix")] == [
        "Redis answers OOM: prefixes of cluster c are not recorded.",
        "Prefixes of cluster c are recorded again.",
    ]


async def test_a_closed_index_has_written_its_notes_once(link: Link, server: RedisServer) -> None:
    index = RedisPrefixIndex(link, "c")
    index.record(made(1, 2, 3), "a")
    assert index._writer is not None
    try:
        async with asyncio.timeout(2):
            await index.close()
    finally:
        index._writer.cancel()
    assert server.client.dbsize() == 3
    assert not index._waiting


async def test_a_backlog_is_bounded(index: RedisPrefixIndex, server: RedisServer) -> None:
    for number in range(3000):
        index.record(made(*(f"{number}-{cut}" for cut in range(16))), "a")
    await index.close()
    assert server.client.dbsize() == 20_000


async def test_foreign_values_in_our_place_are_ignored(index: RedisPrefixIndex, server: RedisServer) -> None:
    client = redis.Redis(port=server.port)
    for number, value in enumerate((b"", b"a", b":", b"0:", b"x:a", b"1" * 99 + b":a", b"\xff\xfe", b"-0:a")):
        client.set(HEAD + "p:" + made(number)[0].hex(), value)
        assert await index.match(made(number)) == (), value
    client.lpush(HEAD + "p:" + made(99)[0].hex(), "a")
    assert await index.match(made(99)) == ()
    await put(index, made(99), "a")
    assert await index.match(made(99))
    client.set(HEAD + "forgotten", "text")
    client.set(HEAD + "forgets", "text")
    assert await index.match(made(99)) == ()
    index.forget("a")
    await index.close()
    client.delete(HEAD + "secret")
    client.lpush(HEAD + "secret", "a")
    assert await RedisPrefixIndex(index._server, "c").secret() is None
    client.close()


async def test_a_server_that_was_emptied_gets_one_new_secret(link: Link, server: RedisServer) -> None:
    one, two = RedisPrefixIndex(link, "c"), RedisPrefixIndex(link, "c")
    before = await one.secret()
    assert await two.secret() == before
    server.client.flushall()
    await asyncio.gather(one.match(made(1)), two.match(made(1)))
    after = await one.secret()
    assert after != before
    assert await two.secret() == after


async def test_later_turns_land_where_the_first_one_did_whichever_balancer_they_meet(
    links: Links, server: RedisServer
) -> None:
    link = await connected(links, server)
    lanes = [Lane(PrefixFinder("c", RedisPrefixIndex(link, "c")), endpoints(5)) for _ in range(2)]
    for number in range(100):
        messages: list[Message] = [user(f"hello {number}")]
        home, reason = await lanes[0].land(asking(messages))
        assert reason == "no_prefix"
        for turn in range(1, 4):
            messages = [*messages, reply("yes"), user(f"and {turn}")]
            assert await lanes[turn % 2].land(asking(messages)) == (home, "prefix")


@pytest.mark.parametrize("prompts", [1000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_nothing_of_a_prompt_can_be_read_or_guessed_from_redis(
    prompts: int, link: Link, server: RedisServer
) -> None:
    secret, tenant = "the-configured-secret", "Bearer sk-tenant-key"
    index = RedisPrefixIndex(link, "c")
    finder = PrefixFinder("c", index, secret=secret)
    known = [f"my secret question number {number}" for number in range(prompts)]
    for text in known:
        finder.record(await finder.find(asking([user(text)], headers={"authorization": tenant})), "e1")
    await finder.close()

    client = redis.Redis(port=server.port)
    names = list(client.scan_iter(count=1000))
    assert len(names) == prompts
    dump = b"\n".join([*names, *{client.dump(name) or b"" for name in names}])
    client.close()
    for readable in (
        b"question",
        b"secret",
        tenant.encode(),
        b"sk-tenant",
        secret.encode(),
        hash_key(secret),
    ):
        assert readable not in dump
        assert readable.hex().encode() not in dump
    stored = {name.rpartition(b":")[2] for name in names}
    for text in known:
        asked = asking([user(text)], headers={"authorization": tenant})
        assert asked.llm is not None
        assert chain(asked.llm, Scope("c", tenant, hash_key(secret)))[0].hex().encode() in stored, (
            "the owner can"
        )
        guesses = [
            chain(asked.llm, Scope("c", tenant, key))[0].hex()
            for key in (b"", hash_key(""), hash_key("wrong"), tenant.encode())
        ]
        for name in ("md5", "sha1", "sha256", "blake2b", "sha3_256"):
            for plain in (text, f"user:{text}", f"user{text}", f"c:m:user:{text}"):
                digest = hashlib.new(name, plain.encode()).hexdigest()
                guesses += [digest[:32], digest[-32:]]
        guesses.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
        assert stored.isdisjoint(guess.encode() for guess in guesses)
