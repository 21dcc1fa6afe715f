"""Near relatives among conversations, generated: no two of them share the key of what differs."""

import random
from collections.abc import Iterator

import pytest

from tests.core.test_prefix_keys import Message, keys


def mutated(messages: list[Message], draw: random.Random) -> list[Message]:
    """A near relative: swapped, repeated, glued, split, with another role, or cut short."""
    made = list(messages)
    at = draw.randrange(len(made))
    match draw.randrange(6):
        case 0:
            other = draw.randrange(len(made))
            made[at], made[other] = made[other], made[at]
        case 1:
            made.insert(at, made[at])
        case 2 if at + 1 < len(made):
            glued = made[at]["content"] + draw.choice(["", ":", "user"]) + made[at + 1]["content"]
            made[at : at + 2] = [{**made[at], "content": glued}]
        case 3:
            text = made[at]["content"]
            half = draw.randrange(len(text) + 1)
            made[at : at + 1] = [{**made[at], "content": part} for part in (text[:half], text[half:])]
        case 4:
            made[at] = {**made[at], "role": draw.choice(["user", "assistant", "system", "users", ""])}
        case _:
            made.pop(at)
    return made


def relatives(pairs: int) -> Iterator[tuple[list[Message], list[Message]]]:
    draw = random.Random(3)
    for _ in range(pairs):
        messages = [
            {
                "role": draw.choice(["user", "assistant"]),
                "content": draw.choice(["", "a", "b", "ab", "ba", "1:a"]),
            }
            for _ in range(draw.randrange(1, 5))
        ]
        yield messages, mutated(messages, draw)


@pytest.mark.parametrize("pairs", [50_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.timeout(600)
def test_two_prefixes_have_one_key_only_if_they_are_the_same(pairs: int) -> None:
    prefix_of: dict[bytes, tuple[tuple[str, str], ...]] = {}
    for pair in relatives(pairs):
        for messages in pair:
            plain = tuple((message["role"], message["content"]) for message in messages)
            ends = [at for at in range(len(plain)) if plain[at][0] == "user" or at == len(plain) - 1]
            made = keys(*messages)
            assert len(made) == len(ends)
            for key, end in zip(made, ends, strict=True):
                assert prefix_of.setdefault(key, plain[: end + 1]) == plain[: end + 1]
    prefixes = set(prefix_of.values())
    assert len(prefixes) == len(prefix_of), "the same prefix has the same key"
    assert len(prefixes) > 2000
