"""The README's ACL is enough, and no command of it too many is needed for its promise: its own keys only."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from lb_core.health import News
from lb_core.prefix.redis import RedisPrefixIndex
from lb_core.stores.fleet import RedisFleet
from lb_core.stores.ledger import COUNTS, key
from lb_core.stores.link import Links
from tests.core.build import endpoints
from tests.redis.fleet import Fleet, equal
from tests.redis.servers import RedisServer, counts_in
from tests.waiting import until

README = Path(__file__).resolve().parents[2] / "README.md"


def the_readmes_command() -> list[str]:
    found = re.search(r"^\s*(ACL SETUSER .*)$", README.read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


async def test_the_balancer_works_as_the_user_of_the_readme(own_server: RedisServer) -> None:
    command = the_readmes_command()
    user, password = command[2], next(word for word in command if word.startswith(">"))[1:]
    own_server.client.execute_command(*command)
    config = replace(own_server.config, username=user, password=password)

    async with Fleet() as fleet:
        store = await fleet.add(config)
        names = [await fleet.acquire(store, equal(*endpoints(3))) for _ in range(5)]
        fleet.release(names[0])
        await store.move(names[1], endpoints(3)[0])
        await until(lambda: sum(counts_in(own_server.client, "c").values()) == 4, within_s=2)
        assert store.stats.fallbacks == store.stats.errors == 0

        link = fleet._links[0].to(config, key("c", COUNTS))
        one, other = (RedisFleet(link, "c", name) for name in ("one", "other"))
        assert await one.claim("e0", 60)
        assert not await other.claim("e0", 60)
        one.ejected("e0", 30, "failures")
        heard: list[News] = []
        listening = asyncio.create_task(other.listen(heard.extend))
        await until(lambda: bool(heard), within_s=3)
        listening.cancel()

    links = Links()
    link = links.to(config, key("c", COUNTS))
    link.start()
    await until(lambda: link.up)
    index = RedisPrefixIndex(link, "c")
    assert await index.secret()
    index.record((b"k" * 16,), "e0")
    await index.close()
    assert [match.owner for match in await index.match((b"k" * 16,))] == ["e0"]
    index.forget("e0")
    await index.close()
    assert await index.match((b"k" * 16,)) == ()
    await links.close()

    client = redis.Redis(port=own_server.port, username=user, password=password)
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.get("somebody else's")
    with pytest.raises(redis.exceptions.NoPermissionError):
        client.flushall()
