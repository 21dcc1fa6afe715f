"""Runs pytest again and again, each time in a fork: what is imported before is what no mutation is in.

A line of JSON on stdin has the arguments and the seconds to wait, one on stdout the exit code and what pytest
said. The code is None where it did not end in time.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module

import pytest

_ALREADY = (
    *("aiohttp", "brotli", "httpx", "hypothesis.stateful", "orjson", "prometheus_client", "pydantic"),
    *("redis.asyncio", "redis.crc", "requests", "yaml", "zstandard"),
    *("mitmproxy.addons", "mitmproxy.contentviews", "mitmproxy.http", "mitmproxy.tools.dump"),
)
"""Of other projects; they take most of the time of a test."""

_POLL_S = 0.01


def main() -> None:
    """Serve until stdin ends."""
    for name in _ALREADY:
        import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        code, said = _run(asked["arguments"], asked["limit_s"])
        print(json.dumps({"code": code, "said": said}), flush=True)


def _run(arguments: Sequence[str], limit_s: float) -> tuple[int | None, str]:
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if process == 0:
            os.setsid()
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            with open(os.devnull) as nothing:  # noqa: PTH123
                os.dup2(nothing.fileno(), 0)
            code = 3
            try:
                code = int(pytest.main(list(arguments)))
            finally:
                sys.stdout.flush()
                os._exit(code)
        exit_code = _waited(process, limit_s)
        output.seek(0)
        return exit_code, output.read().decode(errors="replace")


def _waited(process: int, limit_s: float) -> int | None:
    end = time.monotonic() + limit_s
    try:
        while time.monotonic() < end:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(_POLL_S)
        return None
    finally:
        # Also servers and balancers that a test did not come to stop.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)


if __name__ == "__main__":
    main()
