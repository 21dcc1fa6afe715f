"""Real processes, shared by the tests of a module where starting them would cost more than the test."""

from collections.abc import Iterator

import pytest

from tests.redis.servers import RedisServer, redis_server
from tests.system.balancer import Engines
from tests.system.sharing import PASSWORD


@pytest.fixture
def engines() -> Iterator[Engines]:
    """Three simulated engines, quick ones."""
    with Engines(3, "--ttft", "0.005", "--tpot", "0.001", "--max-num-seqs", "64") as fleet:
        yield fleet


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A server of the test's own, to be killed and filled."""
    with redis_server(password=PASSWORD) as server:
        yield server
