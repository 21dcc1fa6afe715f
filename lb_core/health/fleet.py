"""What the balancers of a fleet tell each other about endpoints, and who of them may probe one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

PROBE_TTL_S = 15.0
"""How long a claim holds when its owner dies; else it is renewed each second, however long a probe takes."""


@dataclass(frozen=True, slots=True)
class News:
    """What another balancer found out about an endpoint."""

    endpoint: str
    out: bool
    """It was ejected; else it has recovered."""
    age_s: float
    left_s: float = 0.0
    """Of the ejection."""
    reason: str = ""


class Fleet(Protocol):
    """The other balancers. What cannot be told to them now they find out for themselves."""

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        """Claim the one probe in the fleet; False if another balancer has it.

        When the other balancers cannot be asked, the answer is True: a probe too many does less harm
        than an endpoint that never comes back. If the caller is cancelled, nothing is held.
        """
        ...

    def renew(self, endpoint: str, ttl_s: float) -> None:
        """Hold one's own claim for so long from now; nothing happens without one. Never blocks."""
        ...

    def release(self, endpoint: str) -> None:
        """Give one's own claim back; nothing happens without one. Never blocks."""
        ...

    def ejected(self, endpoint: str, for_s: float, reason: str) -> None:
        """Tell that this balancer found an endpoint at fault. Never blocks."""
        ...

    def recovered(self, endpoint: str) -> None:
        """Tell that this balancer found it in health again. Never blocks."""
        ...

    async def listen(self, heard: Callable[[Sequence[News]], None]) -> None:
        """Hand over every second what is new from others; ends by being cancelled."""
        ...


class Alone:
    """The fleet of a balancer that is alone: `Health` itself keeps its probes to one."""

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        """See `Fleet`."""
        return True

    def renew(self, endpoint: str, ttl_s: float) -> None:
        """See `Fleet`."""

    def release(self, endpoint: str) -> None:
        """See `Fleet`."""

    def ejected(self, endpoint: str, for_s: float, reason: str) -> None:
        """See `Fleet`."""

    def recovered(self, endpoint: str) -> None:
        """See `Fleet`."""

    async def listen(self, heard: Callable[[Sequence[News]], None]) -> None:
        """See `Fleet`; there is nobody to listen to."""
