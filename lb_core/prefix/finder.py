"""What the balancer asks: where has the head of this request's prompt been?"""

import os
from collections.abc import Collection
from dataclasses import dataclass

from lb_core.prefix.base import PrefixIndex
from lb_core.prefix.keys import Scope, chain, hash_key
from lb_core.types import Choice, PrefixMatch, Request

SECRET_VARIABLE = "AI_LB_PREFIX_SECRET"  # noqa: S105  the name, not the secret
DEFAULT_TENANT_HEADER = "authorization"
_NEXT_TENANT_HEADER = "x-api-key"


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of one prompt: the keys of its cuts, and who has had a prefix, longest first."""

    keys: tuple[bytes, ...] = ()
    matches: tuple[PrefixMatch, ...] = ()

    def among(self, candidates: Collection[Choice]) -> PrefixMatch | None:
        """The longest match whose owner is a candidate; where none is, the longest of all."""
        if not self.matches:
            return None
        names = {choice.endpoint.name for choice in candidates}
        return next((match for match in self.matches if match.owner in names), self.matches[0])


class PrefixFinder:
    """The prefixes of one cluster's prompts.

    `tenant_header` names the header that tells tenants apart; prompts of two tenants never share a prefix.
    "" is no tenants. A request without `authorization` is told by its `x-api-key`. `secret` None is that of
    the environment variable AI_LB_PREFIX_SECRET, and without that one of the index's own making.
    """

    def __init__(
        self,
        cluster: str,
        index: PrefixIndex,
        *,
        tenant_header: str = DEFAULT_TENANT_HEADER,
        secret: str | None = None,
    ) -> None:
        self.index = index
        self._cluster = cluster
        self._tenant_header = tenant_header.lower()
        self._configured = secret or os.environ.get(SECRET_VARIABLE) or None
        self._key: tuple[str, bytes] = ("", b"")

    async def find(self, request: Request) -> Found:
        """What is known of the prompt; nothing for a request without one, or while the index is away."""
        if request.llm is None or not request.llm.known:
            return Found()
        secret = self._configured or await self.index.secret()
        if secret is None:
            return Found()
        keys = chain(request.llm, Scope(self._cluster, self._tenant(request), self._key_of(secret)))
        return Found(keys, await self.index.match(keys)) if keys else Found()

    def record(self, found: Found, endpoint: str) -> None:
        """Note where the request was placed. Never blocks."""
        if found.keys:
            self.index.record(found.keys, endpoint)

    def forget(self, endpoint: str) -> None:
        """Its engine was restarted, or it left the configuration: what it had is gone. Never blocks."""
        self.index.forget(endpoint)

    async def close(self) -> None:
        """Finish what is on its way."""
        await self.index.close()

    def _tenant(self, request: Request) -> str | None:
        if not self._tenant_header:
            return None
        tenant = request.headers.get(self._tenant_header)
        if tenant is None and self._tenant_header == DEFAULT_TENANT_HEADER:
            tenant = request.headers.get(_NEXT_TENANT_HEADER)
        return tenant

    def _key_of(self, secret: str) -> bytes:
        if self._key[0] != secret:
            self._key = (secret, hash_key(secret))
        return self._key[1]
