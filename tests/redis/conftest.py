"""Servers for the session, emptied before each test."""

from collections.abc import AsyncIterator, Iterator

import pytest

from lb_core.stores.link import Links
from tests.redis.fleet import Fleet
from tests.redis.servers import RedisServer, redis_cluster, redis_server


@pytest.fixture(scope="session")
def _server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(_server: RedisServer) -> RedisServer:
    """One empty server, shared by the tests that do not break it."""
    _server.client.flushall()
    return _server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """One server that the test may break."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def _cluster() -> Iterator[list[RedisServer]]:
    with redis_cluster() as servers:
        yield servers


@pytest.fixture
def cluster(_cluster: list[RedisServer]) -> list[RedisServer]:
    """Three empty masters."""
    for server in _cluster:
        server.client.flushall()
    return _cluster


@pytest.fixture
async def links() -> AsyncIterator[Links]:
    """The links of one balancer, closed afterwards."""
    made = Links()
    yield made
    await made.close()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """Balancers in this process, closed afterwards."""
    async with Fleet() as made:
        yield made
