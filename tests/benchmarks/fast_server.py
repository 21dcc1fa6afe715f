"""A server that costs next to nothing, so that what is measured is what stands before it.

`python -m tests.benchmarks.fast_server` prints its port. POST anything is answered with 200 bytes of JSON;
POST /sse with 100 events, one every `PAUSE_S`.
"""

import asyncio
import sys

CHUNKS = 100
PAUSE_S = 0.04
_JSON = b'{"id":"x","choices":[{"message":{"content":"%s"}}]}' % (b"y" * 150)
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_JSON),
    _JSON,
)
_SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795355932,"model":"sim",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_DONE = b"data: [DONE]\n\n"
_END = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_DONE), _DONE)


class _Fast(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            if b"/sse" in head.split(b"\r\n")[0]:
                self._transport.write(_SSE_HEAD)
                self._event(CHUNKS)
            else:
                self._transport.write(_ANSWER)

    def _event(self, left: int) -> None:
        if self._transport.is_closing():
            return
        if left:
            self._transport.write(_CHUNK)
            asyncio.get_running_loop().call_later(PAUSE_S, self._event, left - 1)
        else:
            self._transport.write(_END)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Fast, "127.0.0.1", 0, backlog=512)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
