"""Draws by lot that come out the same on every machine, in every process and in every replay."""

import hashlib
from collections.abc import Sequence

from lb_core.types import Choice

_MASK = (1 << 64) - 1


def hash64(text: str) -> int:
    """A 64-bit hash of any text."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def unit_interval(text: str) -> float:
    """A number in [0, 1) drawn from any text."""
    return (hash64(text) >> 11) / (1 << 53)


def mix64(number: int) -> int:
    """Scramble 64 bits so that near inputs give unrelated outputs (the finaliser of SplitMix64)."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & _MASK
    return number ^ (number >> 31)


def weighted_pick(choices: Sequence[Choice], point: float) -> Choice:
    """Give the choice at `point`, in [0, 1), of the choices laid end to end by weight. Not empty."""
    first = choices[0].endpoint.weight
    if all(choice.endpoint.weight == first for choice in choices):
        return choices[int(point * len(choices))]
    remaining = point * sum(choice.endpoint.weight for choice in choices)
    for choice in choices:
        remaining -= choice.endpoint.weight
        if remaining < 0:
            return choice
    return choices[-1]
