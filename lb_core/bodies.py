"""Bodies of requests as they come: compressed, or forms. Whatever they hold, nothing raises."""

import asyncio
import logging
import re
import zlib
from collections.abc import Callable, Mapping

import brotli  # type: ignore[import-untyped]
import zstandard

logger = logging.getLogger(__name__)

DECODED_LIMIT = 4 << 20
"""Bytes of a compressed body before and after decompression; a larger one is not read.

Without the bound before it, blocks that hold nothing are work without end: 60 MB of them took 1.6 s.
"""
_QUICK = 64 << 10
"""Compressed bytes up to which a thread costs more than it spares the event loop."""

_BOUNDARY = re.compile(r"""[^\r\n]*;\s*boundary=("?)([^";,\s]{1,70})\1\s*(;|\Z)""", re.IGNORECASE)
_FORM_EDGE = 16 << 10
"""Bytes at either end of a form in which fields are looked for; files stand between them."""


def form_field(content_type: str, body: bytes, name: str) -> str | None:
    """The text of a short field of a form; None where it is not near one of its ends, or not plain."""
    found = _BOUNDARY.match(content_type)
    if found is None:
        return None
    boundary = b"--" + found[2].encode("latin-1", "replace")
    wanted = b'%s\r\ncontent-disposition: form-data; name="%s"\r\n' % (boundary.lower(), name.encode())
    for edge in (body[:_FORM_EDGE], body[-_FORM_EDGE:]):
        at = edge.lower().find(wanted)
        if at < 0:
            continue
        head, _, rest = edge[at + len(wanted) - 2 :].partition(b"\r\n\r\n")
        text, end, _ = rest.partition(b"\r\n" + boundary)
        if end and len(head) < 256:
            return text.decode("utf-8", "replace")
    return None


async def decompressed(body: bytes, encoding: str) -> bytes | None:
    """The decoded body; None where it is damaged, too large, or encoded in a way not known.

    The event loop goes on meanwhile: 4 MB take about 10 ms, and 100 ms if somebody means them to.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    decoder = _DECODERS.get(name)
    if decoder is None or len(body) > DECODED_LIMIT:
        return None
    if len(body) <= _QUICK:
        return _decoded(decoder, body)
    return await asyncio.to_thread(_decoded, decoder, body)


def _decoded(decoder: Callable[[bytes], bytes | None], body: bytes) -> bytes | None:
    try:
        plain = decoder(body)
    except (zlib.error, brotli.error, zstandard.ZstdError):
        return None
    except Exception:  # a body that cannot be read is balanced all the same
        logger.exception("A body could not be decompressed; this is a fault of the balancer.")
        return None
    return plain if plain is not None and len(plain) <= DECODED_LIMIT else None


def _inflate(body: bytes) -> bytes | None:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its head
    plain = inflater.decompress(body, DECODED_LIMIT + 1)
    return plain if inflater.eof and not inflater.unused_data else None


def _unbrotli(body: bytes) -> bytes | None:
    decompressor = brotli.Decompressor()
    plain: bytes = decompressor.process(body, output_buffer_limit=DECODED_LIMIT + 1)
    return plain if decompressor.is_finished() else None


def _unzstd(body: bytes) -> bytes:
    # RFC 9659: for HTTP, windows are of 8 MB at most.
    with zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(body) as reader:
        return reader.read(DECODED_LIMIT + 1)


_DECODERS: Mapping[str, Callable[[bytes], bytes | None]] = {
    "gzip": _inflate,
    "x-gzip": _inflate,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
