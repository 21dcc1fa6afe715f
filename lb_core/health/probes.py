"""Who in a fleet of balancers may probe an endpoint that is half-open."""

from typing import Protocol

PROBE_TTL_S = 120.0
"""How long a claim holds when its owner dies. As long as an honest first token may take."""


class ProbeGate(Protocol):
    """One claim per endpoint in the whole fleet."""

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        """Take the claim; False if another balancer has it.

        When the other balancers cannot be asked, the answer is True: a probe too many does less harm
        than an endpoint that never comes back. If the caller is cancelled, nothing is held.
        """
        ...

    def release(self, endpoint: str) -> None:
        """Give one's own claim back; nothing happens without one. Never blocks."""
        ...


class LocalProbes:
    """The gate of a balancer that is alone: `Health` itself keeps its probes to one."""

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        """See `ProbeGate`."""
        return True

    def release(self, endpoint: str) -> None:
        """See `ProbeGate`."""
