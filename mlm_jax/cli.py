"""How every script ends: one line on stderr and a non-zero exit code for what the user can put right."""

import sys
from collections.abc import Callable

from mlm_jax.errors import InputError

EXIT_BAD_INPUT = 2


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its code (None is 0).

    InputError is printed as `error: …` and exits with 2; anything else is a bug and keeps its traceback.
    """
    try:
        code = main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
