"""How long a request may wait for Redis: as long as one call may take, over all calls made for it.

A prefix is looked up, a slot taken, a probe claimed: each alone keeps its limit on a server that hangs or is
slow, and together they would take a multiple of it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from lb_core.stores.wire import ServerAway


@dataclass(slots=True)
class _Waited:
    seconds: float = 0.0


_waited: ContextVar[_Waited | None] = ContextVar("waited", default=None)
"""None in tasks that are no request's: `tasks.spawn` begins them without it."""


class OneWait:
    """A context manager: all that is awaited `at_most` so long in its body shares that time."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = _waited.set(_Waited())

    def __exit__(self, *_: object) -> None:
        _waited.reset(self._token)


@asynccontextmanager
async def at_most(limit_s: float) -> AsyncIterator[None]:
    """Raise TimeoutError when the body takes longer, ServerAway before it when no time is left at all."""
    waited = _waited.get()
    if waited is None:
        async with asyncio.timeout(limit_s):
            yield
        return
    if waited.seconds >= limit_s:
        raise ServerAway("this request has waited long enough")
    now = asyncio.get_running_loop().time
    begun = now()
    try:
        async with asyncio.timeout(limit_s - waited.seconds):
            yield
    finally:
        waited.seconds += now() - begun
