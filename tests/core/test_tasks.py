"""What runs in the background leaves nothing behind."""

import asyncio
import inspect

from lb_core.tasks import spawn


async def test_a_task_that_is_cancelled_before_it_begins_leaves_no_coroutine() -> None:
    work = asyncio.sleep(1)
    task = spawn(work, name="test")
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
