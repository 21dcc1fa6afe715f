"""Reading JSON bodies that are too large, or too odd, for one call of a JSON parser.

A body of 30 MB must not hold the event loop: all connections of the proxy wait behind it. So the structure is
found by a scan that gives the loop back every few milliseconds, values of a bearable size are decoded one by
one, and what is larger than that (an image, nearly always) is hashed where it stands: `Opaque`. The scan
checks structure, not grammar; inside an opaque value anything goes.
"""

import asyncio
import hashlib
import json
import re
import time
from dataclasses import dataclass

import orjson

VALUE_LIMIT = 1 << 20
"""Bytes of an array or object that is decoded in one call: 6 ms at worst."""
STRING_LIMIT = 4 << 20
"""The same for a string, which decodes faster: 4 ms at worst."""
CONTAINER_LIMIT = 50_000
"""Arrays and objects decoded in one call. `[[],[],…` becomes 20 times its size and 30 ms per MB."""
SMALL = 64 << 10
"""Bytes below which a body is not worth a second look before it is decoded."""

_DECODE_BUDGET = 8 << 20  # bytes decoded of one body
_CONTAINER_BUDGET = 100_000  # arrays and objects decoded of one body
_FREE = 1 << 10  # values up to this are decoded whatever the budgets say: `model` must be read
_VALUES = 10_000  # values taken one by one
_STEPS = 1_000_000  # turns of the scan, about a second of work in all
_DEPTH = 5  # body > messages > message > content > part > image_url: below it nothing is taken apart
_SLICE_S = 0.002
_WINDOW = 64 << 10  # bytes for one call of a regular expression: less than a millisecond

_SPACE = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb'[^ \t\n\r,:"\[\]{}]++')
_STRING_REST = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_FLAT = rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+'
# Whole strings, and arrays and objects without others inside. Possessive, so nothing is tried twice.
_PLAIN = re.compile(
    rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+"|\{' + _FLAT + rb"\}|\[" + _FLAT + rb"\])*+", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value that was not decoded: `digest` is the BLAKE2b (128 bit, hex) of its `size` raw bytes."""

    digest: str
    size: int


class Undecodable(ValueError):
    """It may be JSON, but finding out would take too long."""


def decode(raw: bytes | memoryview) -> object:
    """The value of a JSON text, as Python's `json` reads it, which is what most engines use.

    orjson is ten times as fast but refuses what `json` takes: lone surrogates, NaN, UTF-16, a byte order
    mark, nesting beyond 1024; `json` gets those up to a size. Integers of more than 4300 digits, which
    `json` refuses and llama.cpp takes, come as floats. Raises ValueError for what is not JSON, and
    `Undecodable` for what orjson refuses and is too large or too nested for a second try.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        # As many brackets as levels at least: so the recursion of `json`, and of a later dump, is bounded.
        if len(raw) > SMALL or _containers(raw) > 1000:
            raise Undecodable("too large for json") from None
        return json.loads(bytes(raw), parse_int=_integer)


def decodable(body: bytes) -> bool:
    """Whether decoding the body in one call is harmless to the event loop."""
    return len(body) <= SMALL or (len(body) <= VALUE_LIMIT and _containers(body) <= CONTAINER_LIMIT)


async def skim(body: bytes) -> dict[str, object] | None:
    """The members of the JSON object in the body, large values as `Opaque`; of equal keys the last wins.

    None where the body is no JSON object, is cut short, or takes more steps than are good for anybody.
    Gives the event loop back every 2 ms.
    """
    scan = _Scan(body)
    try:
        start = await scan.space(3 if body.startswith(b"\xef\xbb\xbf") else 0)
        if body[start : start + 1] != b"{":
            return None
        members, end = await scan.members(start)
        if await scan.space(end) != len(body):
            return None
        return {key: await scan.read(*span, _DEPTH) for key, span in members.items()}
    except ValueError:
        return None


class _Scan:
    """One pass over a body. Positions are byte offsets; methods raise ValueError where it is no JSON."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._view = memoryview(body)
        self._steps_left = _STEPS
        self._values_left = _VALUES
        self._bytes_left = _DECODE_BUDGET
        self._containers_left = _CONTAINER_BUDGET
        self._until = time.perf_counter() + _SLICE_S

    async def members(self, start: int) -> tuple[dict[str, tuple[int, int]], int]:
        """Where the values of the object at `start` begin and end, and where the object ends."""
        found: dict[str, tuple[int, int]] = {}
        position = await self.space(start + 1)
        if self._body[position : position + 1] == b"}":
            return found, position + 1
        for _ in range(_VALUES):
            if self._body[position : position + 1] != b'"':
                raise ValueError("no key")
            end = await self.string(position)
            key = decode(self._view[position:end]) if end - position <= _FREE else None
            position = await self.space(end)
            if self._body[position : position + 1] != b":":
                raise ValueError("no colon")
            position = await self.space(position + 1)
            end = await self.value(position)
            if isinstance(key, str):
                found[key] = (position, end)
            position, last = await self._next(end, b"}")
            if last:
                return found, position
        raise ValueError("too many members")

    async def read(self, start: int, end: int, depth: int) -> object:
        """The value in the span. A large one is taken apart, `depth` levels down; the rest is opaque."""
        await self._step()
        self._values_left -= 1
        size = end - start
        kind = self._body[start : start + 1]
        if self._afford(start, end, STRING_LIMIT if kind == b'"' else VALUE_LIMIT):
            try:
                return decode(self._view[start:end])
            except Undecodable:
                pass  # taken apart below, or opaque
        if depth and size > SMALL and kind == b"{":
            members, _ = await self.members(start)
            return {key: await self.read(*span, depth - 1) for key, span in members.items()}
        if depth and size > SMALL and kind == b"[":
            return await self._elements(start, end, depth)
        return await self._opaque(start, end)

    async def value(self, position: int) -> int:
        """The end of the value that begins at `position`."""
        await self._step()
        first = self._body[position : position + 1]
        if first == b'"':
            return await self.string(position)
        if first in (b"{", b"["):
            return await self._nested(position)
        scalar = _SCALAR.match(self._body, position, position + _WINDOW)
        if scalar is None:
            raise ValueError("no value")
        return scalar.end()

    async def string(self, position: int) -> int:
        """The end of the string whose opening quote is at `position`."""
        quote = self._body.find(b'"', position + 1)
        escape = self._body.find(b"\\", position + 1, quote)
        if quote < 0:
            raise ValueError("no end of string")
        if escape < 0:
            return quote + 1
        while True:
            await self._step()
            rest = _STRING_REST.match(self._body, escape, escape + _WINDOW)
            end = rest.end() if rest else escape
            if self._body[end : end + 1] == b'"':
                return end + 1
            if end == escape:
                raise ValueError("no end of string")
            escape = end

    async def space(self, position: int) -> int:
        """The first byte at or after `position` that is no white space."""
        while self._body[position : position + 1] in (b" ", b"\t", b"\n", b"\r"):
            await self._step()
            space = _SPACE.match(self._body, position, position + _WINDOW)
            position = space.end() if space else position + 1
        return position

    async def _nested(self, position: int) -> int:
        """The end of the array or object that begins at `position`."""
        depth = 1
        position += 1
        while depth:
            await self._step()
            plain = _PLAIN.match(self._body, position, position + _WINDOW)
            position = plain.end() if plain else position
            match self._body[position : position + 1]:
                case b'"':  # a string that the window cuts
                    position = await self.string(position)
                case b"[" | b"{":
                    depth += 1
                    position += 1
                case b"]" | b"}":
                    depth -= 1
                    position += 1
                case b"":
                    raise ValueError("cut short")
        return position

    async def _elements(self, start: int, end: int, depth: int) -> object:
        """The array in the span by its elements; beyond the number of values allowed, one opaque rest."""
        position = await self.space(start + 1)
        if self._body[position : position + 1] not in (b"{", b"[", b'"'):
            return await self._opaque(start, end)  # numbers: a million of them are no better apart
        elements: list[object] = []
        while self._values_left > 0:
            element_end = await self.value(position)
            elements.append(await self.read(position, element_end, depth - 1))
            position, last = await self._next(element_end, b"]")
            if last:
                return elements
        elements.append(await self._opaque(position, end))
        return elements

    async def _next(self, position: int, closing: bytes) -> tuple[int, bool]:
        """After a value: where the next one begins and False, or where the container ends and True."""
        position = await self.space(position)
        after = self._body[position : position + 1]
        if after == closing:
            return position + 1, True
        if after != b",":
            raise ValueError("no comma")
        return await self.space(position + 1), False

    async def _opaque(self, start: int, end: int) -> Opaque:
        digest = hashlib.blake2b(digest_size=16)
        for position in range(start, end, 4 * _WINDOW):
            await self._step()
            digest.update(self._view[position : min(position + 4 * _WINDOW, end)])
        return Opaque(digest.hexdigest(), end - start)

    def _afford(self, start: int, end: int, limit: int) -> bool:
        """Whether the span may be decoded; if so it is booked."""
        size = end - start
        if size <= _FREE:
            return True
        if size > limit or size > self._bytes_left:
            return False
        if self._body[start : start + 1] != b'"':
            containers = _containers(self._view[start:end])
            if containers > min(CONTAINER_LIMIT, self._containers_left):
                return False
            self._containers_left -= containers
        self._bytes_left -= size
        return True

    async def _step(self) -> None:
        """One piece of work of less than a millisecond is about to begin."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise ValueError("too many steps")
        if time.perf_counter() >= self._until:
            await asyncio.sleep(0)
            self._until = time.perf_counter() + _SLICE_S


def _containers(raw: bytes | memoryview) -> int:
    """No less than the number of arrays and objects in it."""
    text = bytes(raw)
    return text.count(b"[") + text.count(b"{")


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:  # more digits than `sys.get_int_max_str_digits`
        return float(digits)
