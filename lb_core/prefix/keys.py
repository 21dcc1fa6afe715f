"""A prompt → the keys of its cuts, of which a later turn of the same conversation has the same ones.

A conversation is cut after every user message and at its end; a prompt without roles is cut in blocks of a
fixed size and at its end. The key of a cut is the keyed BLAKE2b (RFC 7693, a MAC by itself; 128 bits) of all
that stands before the cut. It is one running hash, so a key depends on every byte from the root on, in order.
The root is the cluster, the API, the model (a LoRA adapter is a model), the tenant and the cache salt.

All that is hashed is framed: lengths before texts, a letter before each kind of thing. So no two different
prompts have the same bytes, whatever roles, parts and texts they are made of.

The work is bounded: at most 256 cuts, and the first megabyte, at whose end there is a cut too. Both bounds
count from the start of the prompt, so later turns of a conversation stay within them in the same way.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from lb_core.request import LLMRequest, Part, Segment

MOST_CUTS = 256
MOST_BYTES = 1 << 20
"""Bytes that are hashed of a prompt, the framing included."""
TEXT_BLOCK = 2048
"""Bytes of UTF-8 in a block of a prompt without roles: some 500 tokens."""
TOKEN_BLOCK = 512

_KEY_BYTES = 16
_PERSON = b"ai_lb prefix 1"
_WITHOUT_ROLES = frozenset({"prompt", "input"})
_WHOLE_BLOCK = re.compile(rb"(?:[^,]*+,){%d}" % TOKEN_BLOCK)


@dataclass(frozen=True, slots=True)
class Scope:
    """Within what prompts may share a prefix. `key` is a `hash_key`; a tenant of None is nobody's."""

    cluster: str
    tenant: str | None = field(default=None, repr=False)
    key: bytes = field(default=b"", repr=False)


def hash_key(secret: str) -> bytes:
    """The 256-bit key that a secret of any length stands for.

    It is not stretched: choose the secret at random, 32 bytes in hex or so.
    """
    return blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=32, person=b"ai_lb secret").digest()


def chain(request: LLMRequest, scope: Scope) -> tuple[bytes, ...]:
    """The keys of the prompt's cuts, shortest prefix first, 16 bytes each; empty where there is no prompt."""
    running = blake2b(_root(request, scope), digest_size=_KEY_BYTES, key=scope.key, person=_PERSON)
    keys: list[bytes] = []
    room = MOST_BYTES
    cut = True
    for segment in request.segments():
        for frame, cut in _frames(segment):
            running.update(frame if len(frame) < room else frame[:room])
            room -= len(frame)
            if cut or room <= 0:
                keys.append(running.digest())
                if room <= 0 or len(keys) == MOST_CUTS:
                    return tuple(keys)
    if not cut:
        keys.append(running.digest())
    return tuple(keys)


def _root(request: LLMRequest, scope: Scope) -> bytes:
    fields = (scope.cluster, request.api, request.model, scope.tenant, request.cache_salt)
    return "".join("-" if value is None else _framed(value) for value in fields).encode(
        "utf-8", "surrogatepass"
    )


def _frames(segment: Segment) -> Iterable[tuple[bytes, bool]]:
    """The segment's bytes in pieces, each with whether there is a cut after it."""
    if segment.role in _WITHOUT_ROLES:
        return _in_blocks(segment)
    return ((_message(segment), segment.role == "user"),)


def _message(segment: Segment) -> bytes:
    head = f"s{len(segment.role)}:{segment.role}"
    pieces = []
    for part in segment.parts:
        data = part.data if isinstance(part.data, bytes) else _encoded(part.data)
        pieces.append(_encoded(f"{head}p{len(part.kind)}:{part.kind}{len(data)}:"))
        pieces.append(data)
        head = ""
    return b"".join(pieces) if pieces else _encoded(head)


def _in_blocks(segment: Segment) -> Iterator[tuple[bytes, bool]]:
    yield _encoded(f"s{_framed(segment.role)}"), False
    for part in segment.parts:
        yield from _blocks(part)


def _blocks(part: Part) -> Iterator[tuple[bytes, bool]]:
    """A cut after every whole block: a longer prompt with this one at its head has it as well."""
    data = part.data if isinstance(part.data, bytes) else _encoded(part.data)
    mark = f"p{_framed(part.kind)}"
    for block, whole in _CUTTERS.get(part.kind, _uncut)(data):
        yield _encoded(f"{mark}{len(block)}:") + block, whole
        mark = "c"


def _text_blocks(data: bytes) -> Iterator[tuple[bytes, bool]]:
    for start in range(0, max(len(data), 1), TEXT_BLOCK):
        block = data[start : start + TEXT_BLOCK]
        yield block, len(block) == TEXT_BLOCK


def _id_blocks(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Blocks of a JSON array of integers. It is not decoded: that would take twice as long."""
    data = data.removesuffix(b"]") + b","
    end = 0
    for found in _WHOLE_BLOCK.finditer(data):
        end = found.end()
        yield found[0], True
    if end < len(data):
        yield data[end:], False


def _uncut(data: bytes) -> Iterator[tuple[bytes, bool]]:
    yield data, False


_CUTTERS = {"text": _text_blocks, "token_ids": _id_blocks}


def _framed(text: str) -> str:
    return f"{len(text)}:{text}"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
