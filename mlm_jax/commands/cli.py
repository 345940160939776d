"""Runs a command, and turns its result or exception into an exit code and, for user errors, a one-line message."""

import sys
import traceback
from collections.abc import Callable

from mlm_jax.commands import process
from mlm_jax.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_RUN_FAILED, InputError, RunError


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and exits with the code that it returns (None is 0).

    Prints an InputError, RunError or OSError as `error: …`; exits with 2 for an InputError and with 1 for the others.
    Any other exception is a bug and keeps its traceback. Messages that stderr cannot take are lost, without an error.
    """
    process.open_streams()
    with process.interruptible():
        code = _code_of(main)
        if not process.flush_stdout() and not code:
            print("error: standard output: not everything could be written", file=sys.stderr)
            code = EXIT_RUN_FAILED
    if code in (EXIT_BAD_INPUT, EXIT_RUN_FAILED) and _is_in_a_job():
        # A normal exit would wait for the other processes, which end only when this one fails.
        process.exit_now(code)
    sys.exit(code)


def _code_of(main: Callable[[], int | None]) -> int | str | None:
    try:
        return main()
    except SystemExit as end:
        return end.code
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_RUN_FAILED
    except OSError as error:
        # The reader of stdout, such as `head`, may close the pipe whenever it likes.
        if not isinstance(error, BrokenPipeError) or process.flush_stdout():
            about = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
            print(f"error: {about}", file=sys.stderr)
        return EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:
        if not _is_in_a_job():
            raise
        traceback.print_exc()
        return EXIT_RUN_FAILED


def _is_in_a_job() -> bool:
    """Returns True if this process has joined a job with `jax.distributed`. Does not import jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
