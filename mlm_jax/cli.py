"""How every script begins and ends: typed flags, and for what the user should hear one line and an exit code."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from itertools import takewhile
from typing import Any, TypeVar

import tyro

from mlm_jax.errors import InputError, RunError

ArgumentsT = TypeVar("ArgumentsT")

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


def parse(arguments_class: type[ArgumentsT], **options: Any) -> ArgumentsT:
    """`tyro.cli(arguments_class, **options)`, with what is wrong as an InputError instead of a box of lines."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(arguments_class, **options)
    except SystemExit as ended:
        if not ended.code:
            raise
        raise InputError(_message(told.getvalue())) from None


def _message(box: str) -> str:
    """The first paragraph of tyro's box, which is drawn in ASCII where the terminal knows no better."""
    rows = [row.strip("│| ") for row in box.splitlines() if row.startswith(("│", "|"))]
    message = " ".join(takewhile(lambda row: not row.startswith(("──", "--" * 8)), rows))
    # Of a value that a config refused, the config's own message has the name.
    return re.sub(r"^Error parsing (?!--)\S+: ", "", message).removeprefix("Error parsing ")
