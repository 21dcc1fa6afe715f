"""What is printed."""

from tests.mutations.model import Mutation

_LIFECYCLE = "addons/lifecycle.py"
_TERMINAL = "addons/terminal_log.py"

_LOG = "tests/addon/test_terminal_log.py::"

MUTATIONS = (
    # What is printed.
    Mutation(
        "lines are kept back",
        _TERMINAL,
        "Output.write",
        "self._file.flush()",
        "pass",
        _LOG + "test_each_line_is_out_at_once",
    ),
    Mutation(
        "a full disk ends the proxy",
        _TERMINAL,
        "Output.write",
        "except OSError:",
        "except FileNotFoundError:",
        _LOG + "test_what_cannot_be_written_is_lost_but_a_closed_pipe_is_told",
    ),
    Mutation(
        "a pipe that nobody reads is written to for ever",
        _TERMINAL,
        "Output.write",
        "except BrokenPipeError:\n            raise\n        ",
        "",
        _LOG + "test_what_cannot_be_written_is_lost_but_a_closed_pipe_is_told",
    ),
    Mutation(
        "mitmproxy prints as it likes",
        _TERMINAL,
        "print_through_full_disks",
        "termlog.logger.file = Output(termlog.logger.file)",
        "pass",
        _LOG + "test_the_log_of_mitmproxy_is_printed_so_once",
    ),
    Mutation(
        "after each reload of the script there is one output more",
        _TERMINAL,
        "print_through_full_disks",
        " and not isinstance(termlog.logger.file, Output)",
        "",
        _LOG + "test_the_log_of_mitmproxy_is_printed_so_once",
    ),
    Mutation(
        "each connection that cannot be accepted is a line",
        _TERMINAL,
        "_OutOfFiles.filter",
        "return False",
        "return True",
        _LOG + "test_that_files_ran_out_is_said_once_a_minute",
    ),
    Mutation(
        "that files ran out is said once for ever",
        _TERMINAL,
        "_OutOfFiles.filter",
        "if now - self._said_at < _AGAIN_S:",
        "if self._said_at > 0:",
        _LOG + "test_that_files_ran_out_is_said_once_a_minute",
    ),
    Mutation(
        "that files ran out comes with a traceback",
        _TERMINAL,
        "_OutOfFiles.filter",
        "record.exc_info = None",
        "pass",
        _LOG + "test_that_files_ran_out_is_said_once_a_minute",
    ),
    Mutation(
        "other faults are not said",
        _TERMINAL,
        "_OutOfFiles.filter",
        "if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):",
        "if False:",
        _LOG + "test_other_faults_are_said_each_time",
    ),
    Mutation(
        "the script does not see to the log",
        _LIFECYCLE,
        "Lifecycle._load",
        "terminal_log.print_through_full_disks()",
        "pass",
        _LOG + "test_the_addon_sees_to_the_log",
    ),
    Mutation(
        "the script lets faults of accepting flood the log",
        _LIFECYCLE,
        "Lifecycle._load",
        "terminal_log.say_once_that_files_ran_out()",
        "pass",
        _LOG + "test_the_addon_sees_to_the_log",
    ),
)
