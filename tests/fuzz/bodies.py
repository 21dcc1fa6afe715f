"""Coverage-guided fuzzing of what reads bodies and streams: `python -m tests.fuzz.bodies -runs=1000000`.

Needs `pip install -e '.[fuzz]'` (atheris); the arguments are libFuzzer's. Starts from `tests/fuzz/corpus`.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import atheris

READERS = ["lb_core.bodies", "lb_core.error_words", "lb_core.request", "lb_core.skim", "lb_core.sse"]

with atheris.instrument_imports(include=READERS):
    from lb_core.request import parse
    from lb_core.sse import SseMeter, usage_of_json

CORPUS = Path(__file__).parent / "corpus"
PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"),
    *("/v1/rerank", "/v1/audio/transcriptions"),
)
FORM = "multipart/form-data; boundary=b"
ENCODINGS = ("", "", "", "gzip", "deflate", "br", "zstd")

_loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    """Any bytes, as a body of any API and as a stream: nothing raises, nothing is changed."""
    before = bytes(data)
    choice = data[0] if data else 0
    path = PATHS[choice % len(PATHS)]
    headers = {
        "content-type": FORM if path == PATHS[-1] else "application/json",
        "content-encoding": ENCODINGS[choice // 16 % len(ENCODINGS)],
    }
    request = _loop.run_until_complete(parse(path, headers, data))
    if request is not None:
        repr(request)
        tuple(request.segments())
    usage_of_json(data)
    meter = SseMeter()
    for start in range(0, len(data), 1 + choice):
        meter.feed(data[start : start + 1 + choice], float(start))
    meter.close()
    assert data == before


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as found:  # libFuzzer writes what it finds into the first folder
        atheris.Setup([*sys.argv, found, str(CORPUS)], one)
        atheris.Fuzz()
