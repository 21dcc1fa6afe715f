"""What an index of prefixes promises. `tests/core/test_prefix_index.py` holds every index to it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from lb_core.types import PrefixMatch

_EVERY = 8


class PrefixIndex(Protocol):
    """Where the prompts of one cluster were sent, by the keys of their cuts.

    It is a hint and no more: what is lost, late or refused costs an engine's cached prefix and nothing else,
    so no method raises for it.
    """

    async def match(self, keys: Sequence[bytes]) -> tuple[PrefixMatch, ...]:
        """The endpoints known to have had a prefix of this prompt, each with the longest; longest first.

        Keys are chained, so whoever has a longer prefix had all shorter ones: a gap does not end the match.
        """
        ...

    def record(self, keys: Sequence[bytes], endpoint: str) -> None:
        """Note that the prompt was sent to `endpoint`; its prefixes belong there from now on.

        They are forgotten after the TTL, which this starts anew. Never blocks.
        """
        ...

    def forget(self, endpoint: str) -> None:
        """The endpoint's cache is gone: nothing recorded for it until now counts any more. Never blocks."""
        ...

    async def secret(self) -> str | None:
        """The secret to make keys with where none is configured; None while it cannot be had."""
        ...

    async def close(self) -> None:
        """Finish what is on its way."""
        ...


@lru_cache(maxsize=512)
def kept(cuts: int) -> tuple[int, ...]:
    """Of so many cuts the indices of those that an index keeps: the first 8, the last 8, every 8th between.

    At most 46 of 256, so that a long conversation costs a server little. A later turn finds the last one
    kept, or at most 7 cuts before it: whatever is longer has the same 8ths and the same beginning.
    """
    return tuple(
        cut for cut in range(cuts) if cut < _EVERY or cut >= cuts - _EVERY or (cut + 1) % _EVERY == 0
    )


def matches(owners: Sequence[str | None], cuts: int) -> tuple[PrefixMatch, ...]:
    """What `match` gives, from the owner of each kept cut, None where it has none."""
    longest: dict[str, PrefixMatch] = {}
    for index, owner in zip(reversed(kept(cuts)), reversed(owners), strict=True):
        if owner is not None and owner not in longest:
            longest[owner] = PrefixMatch(owner, index + 1, cuts)
    return tuple(longest.values())
