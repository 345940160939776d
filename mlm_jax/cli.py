"""How every script ends: one line on stderr and a documented exit code for what the user should hear."""

import sys
from collections.abc import Callable

from mlm_jax.errors import InputError, RunError

EXIT_RUN_FAILED = 1
EXIT_BAD_INPUT = 2
# EX_TEMPFAIL of sysexits.h: stopped by a signal, everything is saved, the same command goes on.
EXIT_STOPPED = 75


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its code (None is 0).

    InputError is printed as `error: …` and exits with 2, RunError likewise with 1; anything else is a bug and
    keeps its traceback.
    """
    try:
        code = main()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_RUN_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
