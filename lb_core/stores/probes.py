"""One probe of an endpoint at a time in the whole fleet, by a claim in Redis; see `health.ProbeGate`."""

import asyncio

from lb_core.stores.ledger import key
from lb_core.stores.link import Link
from lb_core.stores.scripts import UNCLAIM
from lb_core.stores.wire import Refused, ServerAway
from lb_core.tasks import spawn


class RedisProbes:
    """The gate of the balancers that share a cluster's state. `owner` is this one's name, and no other's."""

    def __init__(self, link: Link, cluster: str, owner: str) -> None:
        self._link = link
        self._cluster = cluster
        self._owner = owner

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        """See `ProbeGate`. While the server is away every balancer probes for itself."""
        milliseconds = int(ttl_s * 1000)
        try:
            reply = await self._link.call("SET", self._key(endpoint), self._owner, "NX", "PX", milliseconds)
        except (ServerAway, Refused):
            return True
        except asyncio.CancelledError:
            self.release(endpoint)  # the claim may have been taken; written after it, carried out after it
            raise
        return reply is not None

    def release(self, endpoint: str) -> None:
        """See `ProbeGate`. Where the server does not hear of it, the claim runs out."""
        spawn(self._release(endpoint), name=f"release of the probe of {endpoint}")

    async def _release(self, endpoint: str) -> None:
        try:
            await self._link.run(UNCLAIM, (self._key(endpoint),), self._owner)
        except (ServerAway, Refused):
            return

    def _key(self, endpoint: str) -> str:
        return key(self._cluster, f"probe:{endpoint}")
