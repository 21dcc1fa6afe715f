"""Which exchanges a connection to an endpoint is for, and how long it may take for them."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from mitmproxy.connection import Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.test.tflow import tclient_conn

from addons.exchange import Exchange
from addons.failover.hooks import FailoverHooks
from tests.addon.failover_rig import BlackHole
from tests.addon.proxy import Proxy
from tests.waiting import until


class Looked(dict[str, Exchange]):
    """Counts what is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looked = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looked += 1
        return super().get(key, default)

    def values(self) -> Any:
        self.looked += len(self)
        return super().values()


def exchanges(clients: int) -> Iterator[tuple[Any, Exchange]]:
    """Two for each client, at ports 1 and 2."""
    for _ in range(clients):
        client = tclient_conn()
        for port in (1, 2):
            endpoint = SimpleNamespace(host="h", port=port, scheme="http")
            yield (
                client,
                cast(
                    Exchange,
                    SimpleNamespace(
                        flow=SimpleNamespace(client_conn=client),
                        placement=SimpleNamespace(endpoint=endpoint),
                    ),
                ),
            )


def test_only_the_exchanges_of_the_client_are_looked_at() -> None:
    known = Looked()
    by_client: dict[str, set[str]] = {}
    for number, (client, exchange) in enumerate(exchanges(1000)):
        known[str(number)] = exchange
        by_client.setdefault(client.id, set()).add(str(number))
    clients: Mapping[str, set[str]] = by_client
    hooks = FailoverHooks(known, clients)
    data = ServerConnectionHookData(Server(address=("h", 2)), known["1001"].flow.client_conn)
    assert list(hooks._at(data)) == [known["1001"]]
    assert known.looked <= 2
    assert not list(hooks._at(ServerConnectionHookData(Server(address=("h", 2)), tclient_conn())))


async def test_a_black_hole_costs_each_route_its_own_connect_time_out(tmp_path: Path) -> None:
    with BlackHole() as hole:
        config = {
            "clusters": {"c": {"endpoints": [f"http://127.0.0.1:{hole}"]}},
            "routes": [
                {"cluster": "c", "match": {"paths": "/patient"}, "retry": {"connect_timeout_s": 60}},
                {"cluster": "c", "retry": {"connect_timeout_s": 0.2, "connect_attempts": 0}},
            ],
        }
        async with (
            Proxy(tmp_path, config) as proxy,
            httpx.AsyncClient(base_url=proxy.url, timeout=100) as patient,
            httpx.AsyncClient(base_url=proxy.url, timeout=30) as hasty,
        ):
            waits = asyncio.create_task(patient.get("/patient"))
            await until(lambda: proxy.in_flight() == 1, "it waits for its connection")
            assert (await hasty.get("/hasty")).status_code == 503
            assert not waits.done()
            waits.cancel()
            await until(proxy.is_clean, "nothing is left")
