"""Runs a command, and turns its result or exception into an exit code and, for user errors, a one-line message."""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from mlm_jax.commands import process
from mlm_jax.errors import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_RUN_FAILED,
    InputError,
    RunError,
    describe_os_error,
    one_line,
)
from mlm_jax.files.targets import failed_write


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and exits with the code that it returns (None is 0).

    Prints an InputError, RunError or OSError as `error: …`; exits with 2 for an InputError or a name that is too long,
    and with 1 for the others.
    Any other exception is a bug and keeps its traceback. Messages that stderr cannot take are lost, without an error.
    """
    process.open_streams()
    warnings.showwarning = _show_warning
    with process.interruptible():
        code = _code_of(main)
        if not process.flush_stdout() and not code:
            print("error: standard output: not everything could be written", file=sys.stderr)
            code = EXIT_RUN_FAILED
    failed = (EXIT_BAD_INPUT, EXIT_RUN_FAILED, *process.TERMINATED)
    if isinstance(code, int) and code in failed and _is_in_a_job():
        # A normal exit would wait for the other processes, which end only when this one fails.
        process.exit_now(code)
    sys.exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _code_of(main: Callable[[], int | None]) -> int | str | None:
    try:
        return main()
    except process.Terminated as end:
        print("terminated", file=sys.stderr)
        return end.code
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        message = _message(error)
        if message is None and not _is_in_a_job():
            raise
        # The reader of stdout, such as `head`, may close the pipe whenever it likes.
        if not (isinstance(error, BrokenPipeError) and process.stdout_lost_its_reader()):
            print(traceback.format_exc() if message is None else f"error: {message}", file=sys.stderr)
        is_bad_name = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        return EXIT_BAD_INPUT if isinstance(error, InputError) or is_bad_name else EXIT_RUN_FAILED


def _message(error: Exception) -> str | None:
    """Returns what a user is told, None for a bug."""
    if isinstance(error, InputError | RunError):
        return str(error)
    if isinstance(error, FileNotFoundError) and not error.filename and not os.path.isdir(os.curdir):
        return "the current folder no longer exists"
    if isinstance(error, OSError):
        return describe_os_error(error)
    # Libraries have exceptions of their own for a full disk.
    return one_line(error) if failed_write(error) else None


def _is_in_a_job() -> bool:
    """Returns True if this process has joined a job with `jax.distributed`. Does not import jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
