"""Text to tokens, tokens to blocks: deterministic, and quick enough for long prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A token is at most four characters of a word with the white space before it. A text cut at a token's end
# splits into the same tokens again, so an answer that comes back in the next turn meets its own blocks.
_TOKEN = re.compile(r"\s*\S{1,4}|\s+")
# Beyond any context length here; bounds the time one request can hold the event loop.
_MAX_CHARS = 4 << 20


def tokens(text: str) -> list[str]:
    """The tokens of `text`; joined they give it back (only the first 4 Mi characters count)."""
    return _TOKEN.findall(text[:_MAX_CHARS])


def block_keys(parent: int, pieces: Sequence[str], block_size: int) -> list[int]:
    """One key per full block of `pieces`; each holds all before it, beginning with `parent`.

    Keys compare within one process only: Python salts the hashes of strings.
    """
    keys = []
    for start in range(0, len(pieces) - block_size + 1, block_size):
        parent = hash((parent, *pieces[start : start + block_size]))
        keys.append(parent)
    return keys
