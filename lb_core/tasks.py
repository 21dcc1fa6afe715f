"""Background tasks whose failure does not go unseen."""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

logger = logging.getLogger(__name__)

_running: set[asyncio.Task[None]] = set()
"""The event loop itself keeps only weak references."""


def spawn(coro: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """Run it in the background of the running event loop; an exception that escapes is logged, once.

    It begins with an empty context: it may outlive the request in which it was begun, and is not part of it.
    """
    task = asyncio.get_running_loop().create_task(_guarded(coro, name), name=name, context=Context())
    _running.add(task)
    task.add_done_callback(_running.discard)
    task.add_done_callback(lambda _: coro.close())  # of a task that is cancelled before it begins
    return task


async def _guarded(coro: Coroutine[Any, Any, None], name: str) -> None:
    with guarded(f"The task {name!r}"):
        await coro


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Log an exception that escapes from the body, and go on behind it."""
    try:
        yield
    except Exception:  # in the event loop, only what decompresses bodies does so besides this
        logger.exception("%s failed; this is a fault of the balancer.", what)
