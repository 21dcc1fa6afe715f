"""DNS names: what the system says of them, and following what changes."""

import asyncio
import ipaddress
import logging
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from lb_core.tasks import spawn

_JITTER = 0.2
_NO_ADDRESS = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
"""What the system's resolver says when somebody who knows says that there is none."""

logger = logging.getLogger(__name__)

type Resolve = Callable[[str], Awaitable[Collection[str]]]
"""Host name → its IP addresses; empty where it is known to have none. Raises OSError where nobody knows."""


async def resolve(host: str) -> tuple[str, ...]:
    """What the system's resolver says: IPv4 addresses, IPv6 only where there is no other.

    With both, an engine on two stacks would be taken for two engines. Not 0.0.0.0 or ::, which resolvers give
    for names that they block, and which lead to this machine. Raises OSError when no answer could be had.

    In a thread of its own, which the end of the process does not wait for: a resolver may hang for half a
    minute, and in a pool it would hold up whatever else is asked.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[str, ...] | OSError] = loop.create_future()

    def hand_over(found: tuple[str, ...] | OSError) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        found = _ask_system(host)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(hand_over, found)

    try:
        threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    except RuntimeError as error:
        raise OSError("no thread can be started") from error
    found = await answer
    if isinstance(found, OSError):
        raise found
    return found


def _ask_system(host: str) -> tuple[str, ...] | OSError:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return () if error.errno in _NO_ADDRESS else error
    except (OSError, ValueError) as error:  # ValueError: the codec for names
        return OSError(str(error))
    found = {str(address[0]) for _, _, _, _, address in answers}
    usable = [text for text in found if not ipaddress.ip_address(text).is_unspecified]
    return tuple([text for text in usable if ":" not in text] or usable)


@dataclass(frozen=True, slots=True)
class Asking:
    """How often and how long a name is asked for, in seconds."""

    interval_s: float = 5.0
    """Give or take a fifth, so that balancers do not ask in step."""
    timeout_s: float = 2.0
    """After that a question counts as failed, though its answer is still welcome."""
    empty_s: float = 30.0
    """A name loses its addresses when it has had none for so long. Failed questions do not count."""


USUAL_ASKING = Asking()


class NameWatch:
    """Calls `on_change` with a name and its addresses, sorted, whenever they differ from `addresses`.

    While it cannot be resolved its addresses stay for as long as that lasts: a resolver in trouble says
    nothing about the engines. That it has none is believed after `empty_s` without another answer, because
    controllers and caches lose names for moments. Either is logged when it begins and when it ends.
    """

    def __init__(
        self,
        host: str,
        resolve: Resolve,
        on_change: Callable[[str, tuple[str, ...]], None],
        *,
        addresses: tuple[str, ...] = (),
        asking: Asking = USUAL_ASKING,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.asked = asyncio.Event()
        """Set when the first question was answered or has failed."""
        self._host = host
        self._resolve = resolve
        self._on_change = on_change
        self._addresses = addresses
        self._asking = asking
        self._clock = clock
        self._dice = dice
        self._task: asyncio.Task[None] | None = None
        self._lookup: asyncio.Future[Collection[str]] | None = None
        self._empty_at: float | None = None
        self._in_trouble = False

    def start(self) -> None:
        """Begin to ask; does nothing the second time. Needs a running event loop."""
        if self._task is None:
            self._task = spawn(self._run(), name=f"watch of the DNS name {self._host}")

    def stop(self) -> None:
        """Ask no more; `on_change` is not called again."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                await self._ask()
                self.asked.set()
                await asyncio.sleep(self._asking.interval_s * (1 + _JITTER * (2 * self._dice() - 1)))
        finally:
            if self._lookup is not None:
                self._lookup.cancel()

    async def _ask(self) -> None:
        """A question that hangs is not put again: its answer counts when it comes, and nothing piles up."""
        if self._lookup is None:
            self._lookup = asyncio.ensure_future(self._resolve(self._host))
        await asyncio.wait({self._lookup}, timeout=self._asking.timeout_s)
        if not self._lookup.done():
            self._trouble("does not resolve in time; its last addresses stay in use")
            return
        lookup, self._lookup = self._lookup, None
        try:
            found = tuple(sorted(set(lookup.result())))
        except OSError as error:
            self._trouble(f"cannot be resolved ({error.strerror or error}); its last addresses stay in use")
            return
        if found:
            self._empty_at = None
            if self._in_trouble:
                self._in_trouble = False
                logger.info("The DNS name %s resolves again.", self._host)
        else:
            self._trouble(f"has no address; its last ones are in use for {self._asking.empty_s:g} s at most")
            now = self._clock()
            self._empty_at = now if self._empty_at is None else self._empty_at
            if now - self._empty_at < self._asking.empty_s:
                return
        if found != self._addresses:
            self._addresses = found
            self._on_change(self._host, found)

    def _trouble(self, what: str) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            logger.warning("The DNS name %s %s.", self._host, what)
