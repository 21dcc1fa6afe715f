"""How the log is printed: each line at once, through a full disk, and without a flood."""

import errno
import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import ctx
from mitmproxy.log import MitmLogHandler

from addons import terminal_log
from addons.terminal_log import Output
from tests.addon import engine as engines
from tests.addon.engine import ScriptedEngine
from tests.addon.proxy import Proxy
from tests.addon.test_ai_lb import one_cluster


class Printed(io.StringIO):
    """Counts flushes; raises where told."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.flushes = 0
        self._error = error

    def write(self, text: str) -> int:
        if self._error is not None:
            raise self._error
        return super().write(text)

    def flush(self) -> None:
        self.flushes += 1


class Termlog:
    """mitmproxy's addon that prints, as far as it matters here."""

    name = "termlog"

    def __init__(self) -> None:
        self.file = Printed()
        self.logger = SimpleNamespace(file=self.file)


def test_each_line_is_out_at_once() -> None:
    file = Printed()
    output = Output(file)
    assert output.write("a ") == 2
    assert file.flushes == 0
    output.write("line\n")
    assert (file.getvalue(), file.flushes) == ("a line\n", 1)


def test_what_cannot_be_written_is_lost_but_a_closed_pipe_is_told() -> None:
    assert Output(Printed(OSError(errno.ENOSPC, "full"))).write("x\n") == 0
    with pytest.raises(BrokenPipeError):
        Output(Printed(BrokenPipeError())).write("x\n")


def test_the_log_of_mitmproxy_is_printed_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    termlog = Termlog()
    addons = SimpleNamespace(get=lambda name: termlog)
    monkeypatch.setattr(ctx, "master", SimpleNamespace(addons=addons), raising=False)
    terminal_log.print_through_full_disks()
    output: Any = termlog.logger.file
    assert isinstance(output, Output)
    terminal_log.print_through_full_disks()
    assert termlog.logger.file is output


def said(error: Exception, number: int) -> logging.LogRecord:
    return logging.LogRecord("asyncio", logging.ERROR, "", 0, "%d", (number,), (type(error), error, None))


def test_that_files_ran_out_is_said_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("addons.terminal_log.time.monotonic", lambda: now)
    out_of_files = terminal_log._OutOfFiles()
    passed = []
    for seconds in range(120):
        now = 1000.0 + seconds
        record = said(OSError(errno.EMFILE, "x"), seconds)
        if out_of_files.filter(record):
            passed.append(record)
    assert len(passed) == 2
    assert "ulimit -n" in passed[0].getMessage()
    assert passed[0].exc_info is None


def test_other_faults_are_said_each_time() -> None:
    out_of_files = terminal_log._OutOfFiles()
    for number in range(3):
        for error in (OSError(errno.ECONNRESET, "x"), ValueError()):
            record = said(error, number)
            assert out_of_files.filter(record)
            assert record.getMessage() == str(number)
            assert record.exc_info is not None


@pytest.mark.parametrize(
    ("name", "said", "printed"),
    [
        ("lb_core.stores.link", "Redis at %s is away", "ai-lb: Redis at x is away"),
        ("addons.lifecycle", "ai-lb: %s", "ai-lb: x"),
        ("mitmproxy.addons.proxyserver", "listening at %s", "listening at x"),
        ("addons.sim_engines", "engines at %s", "engines at x"),
    ],
)
def test_all_that_the_balancer_says_is_printed_with_its_name(name: str, said: str, printed: str) -> None:
    record = logging.LogRecord(name, logging.INFO, "", 0, said, ("x",), None)
    lines: list[str] = []

    class Handler(MitmLogHandler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler: logging.Handler = Handler()  # type: ignore[no-untyped-call]
    handler.setFormatter(logging.Formatter())
    logging.getLogger().addHandler(handler)
    try:
        terminal_log.name_the_balancer()
        terminal_log.name_the_balancer()
        handler.handle(record)
    finally:
        logging.getLogger().removeHandler(handler)
    assert lines == [printed]
    assert record.msg == said, "other handlers see what was said"


async def test_the_addon_sees_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("mitmproxy.master"), "filters", [])
    termlog = Termlog()
    async with ScriptedEngine(engines.answer) as engine, Proxy(tmp_path, one_cluster(engine), termlog):
        assert type(termlog.logger.file).__name__ == "Output"
        (found,) = logging.getLogger("mitmproxy.master").filters
        assert type(found).__name__ == "_OutOfFiles"
