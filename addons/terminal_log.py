"""How mitmproxy prints the log: each line at once, through a full disk, and without a flood of one fault."""

import copy
import errno
import logging
import time
from typing import IO, Any

from mitmproxy import ctx
from mitmproxy.log import MitmLogHandler

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


_NAME = "ai-lb: "


def name_the_balancer() -> None:
    """Have each line of ours printed with one name before it, whichever module says it."""
    for handler in logging.getLogger().handlers:
        formatter = handler.formatter
        if isinstance(handler, MitmLogHandler) and formatter and not isinstance(formatter, _Naming):
            handler.setFormatter(_Naming(formatter))


class _Naming(logging.Formatter):
    def __init__(self, plain: logging.Formatter) -> None:
        super().__init__()
        self._plain = plain

    def format(self, record: logging.LogRecord) -> str:
        return self._plain.format(_named(record))


def _named(record: logging.LogRecord) -> logging.LogRecord:
    package, _, module = record.name.partition(".")
    ours = package == "lb_core" or (package == "addons" and not module.startswith("sim"))
    if not ours or str(record.msg).startswith(_NAME):
        return record
    named = copy.copy(record)
    named.msg = f"{_NAME}{record.msg}"
    return named


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
