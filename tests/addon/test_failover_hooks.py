"""Which exchanges a connection to an endpoint is for."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

from mitmproxy.connection import Server
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.test.tflow import tclient_conn

from addons.exchange import Exchange
from addons.failover_hooks import FailoverHooks


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
