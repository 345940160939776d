"""Runs a command and turns the way it ends into an exit code and, for errors of the user, one line."""

import sys
from collections.abc import Callable

from mlm_jax.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_RUN_FAILED, InputError, RunError


def run(main: Callable[[], int | None]) -> None:
    """Calls `main` and exits with the code that it returns (None is 0).

    InputError is printed as `error: …` and exits with 2; RunError and OSError (with its file) exit with 1. Any other
    exception is a bug and keeps its traceback.
    """
    try:
        code = main()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_RUN_FAILED
    except OSError as error:
        about = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"error: {about}", file=sys.stderr)
        code = EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)
