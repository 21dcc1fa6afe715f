"""How mitmproxy prints the log: each line at once, through a full disk, and without a flood of one fault."""

import errno
import logging
import time
from typing import IO, Any

from mitmproxy import ctx

_AGAIN_S = 60.0
"""How long a fault that goes on is not said again."""


class Output:
    """Text output in whole lines. What cannot be written is lost; mitmproxy would end itself.

    A pipe that nobody reads any more still ends it.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """As of a file. Python keeps back 8 kB of what goes to a file or a pipe; here each line is out."""
        try:
            self._file.write(text)
            if text.endswith("\n"):
                self._file.flush()
        except BrokenPipeError:
            raise
        except OSError:  # there is nowhere to say it
            return 0
        return len(text)


def print_through_full_disks() -> None:
    """Let mitmproxy print through an `Output` from now on."""
    termlog: Any = ctx.master.addons.get("termlog")
    if termlog is not None and not isinstance(termlog.logger.file, Output):
        termlog.logger.file = Output(termlog.logger.file)


class _OutOfFiles(logging.Filter):
    """asyncio reports each connection that it cannot accept, with a traceback, thousands in a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            return True
        now = time.monotonic()
        if now - self._said_at < _AGAIN_S:
            return False
        self._said_at = now
        record.msg, record.args = "ai-lb: no more files can be opened, so clients wait: raise ulimit -n", ()
        record.exc_info = None
        return True


_out_of_files = _OutOfFiles()


def say_once_that_files_ran_out() -> None:
    """Print one line a minute at most while there are no file descriptors left."""
    logging.getLogger("mitmproxy.master").addFilter(_out_of_files)
