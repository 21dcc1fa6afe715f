"""What the balancers of a fleet tell each other through Redis; see `health.Fleet`."""

import asyncio
import re
from collections.abc import Callable, Sequence

from lb_core.health import News
from lb_core.stores.ledger import key
from lb_core.stores.link import Link
from lb_core.stores.scripts import NEWS, RECLAIM, TELL, UNCLAIM, Script
from lb_core.stores.wire import Argument, Refused, Reply, ServerAway
from lb_core.tasks import spawn

_TEXT = re.compile(r"(?P<at>\d{1,15}) (?P<until>\d{1,15}) (?P<owner>\S+) (?P<state>out|in) (?P<reason>\S+)")
_EVERY_S = 1.0
_OLD_S = 600.0
"""An ejection that ended so long ago and that nobody took back was told by a balancer that is gone."""


class RedisFleet:
    """The balancers that share a cluster's state. `owner` is this one's name, and no other's."""

    def __init__(self, link: Link, cluster: str, owner: str) -> None:
        self._link = link
        self._cluster = cluster
        self._owner = owner
        self._known: dict[bytes, bytes] = {}
        """What was heard last of each endpoint, as it stands there."""

    async def claim(self, endpoint: str, ttl_s: float) -> bool:
        """See `Fleet`. While the server is away every balancer probes for itself."""
        milliseconds = int(ttl_s * 1000)
        try:
            reply = await self._link.call("SET", self._claim(endpoint), self._owner, "NX", "PX", milliseconds)
        except (ServerAway, Refused):
            return True
        except asyncio.CancelledError:
            self.release(endpoint)  # the claim may have been taken; written after it, carried out after it
            raise
        return reply is not None

    def renew(self, endpoint: str, ttl_s: float) -> None:
        """See `Fleet`."""
        self._say(RECLAIM, self._claim(endpoint), self._owner, int(ttl_s * 1000))

    def release(self, endpoint: str) -> None:
        """See `Fleet`. Where the server does not hear of it, the claim runs out."""
        self._say(UNCLAIM, self._claim(endpoint), self._owner)

    def ejected(self, endpoint: str, for_s: float, reason: str) -> None:
        """See `Fleet`."""
        self._tell(endpoint, "out", int(for_s * 1000), reason)

    def recovered(self, endpoint: str) -> None:
        """See `Fleet`."""
        self._tell(endpoint, "in", 0, "recovered")

    async def listen(self, heard: Callable[[Sequence[News]], None]) -> None:
        """See `Fleet`."""
        while True:
            try:
                reply = await self._link.run(NEWS, (key(self._cluster, "news"),))
            except (ServerAway, Refused):
                pass  # told by the link
            else:
                heard(self._fresh(reply))
            await asyncio.sleep(_EVERY_S)

    def _fresh(self, reply: Reply) -> list[News]:
        now, texts = reply
        known, self._known = self._known, {texts[at]: texts[at + 1] for at in range(0, len(texts), 2)}
        return [
            news
            for endpoint, text in self._known.items()
            if known.get(endpoint) != text and (news := self._read(int(now), endpoint, text)) is not None
        ]

    def _read(self, now_ms: int, endpoint: bytes, text: bytes) -> News | None:
        """None for what this balancer told itself, what is too old, and what no balancer wrote."""
        found = _TEXT.fullmatch(text.decode("utf-8", "replace"))
        if found is None or found["owner"] == self._owner:
            return None
        age_s, left_s = (now_ms - int(found["at"])) / 1000, (int(found["until"]) - now_ms) / 1000
        if left_s < -_OLD_S:
            return None
        name = endpoint.decode("utf-8", "replace")
        return News(name, found["state"] == "out", max(age_s, 0.0), max(left_s, 0.0), found["reason"])

    def _tell(self, endpoint: str, state: str, for_ms: int, reason: str) -> None:
        news, old_ms = key(self._cluster, "news"), int(_OLD_S * 1000)
        self._say(TELL, news, endpoint, self._owner, state, for_ms, reason, old_ms)

    def _say(self, script: Script, place: str, *arguments: Argument) -> None:
        async def say() -> None:
            try:
                await self._link.run(script, (place,), *arguments)
            except (ServerAway, Refused):
                return

        spawn(say(), name=f"news of cluster {self._cluster}")

    def _claim(self, endpoint: str) -> str:
        return key(self._cluster, f"probe:{endpoint}")
