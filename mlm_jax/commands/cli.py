"""How every script begins and ends: typed flags, and for what the user should hear one line and an exit code."""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, TypeVar

import tyro

from mlm_jax.errors import EXIT_BAD_INPUT, EXIT_RUN_FAILED, InputError, RunError

ArgumentsT = TypeVar("ArgumentsT")


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its code (None is 0).

    InputError is printed as `error: …` and exits with 2, RunError and what the system refuses (OSError, with
    its file) likewise with 1; anything else is a bug and keeps its traceback.
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
        code = 130
    except Exception:
        if not _is_in_a_job():
            raise
        traceback.print_exc()
        code = EXIT_RUN_FAILED
    if code in (EXIT_BAD_INPUT, EXIT_RUN_FAILED) and _is_in_a_job():
        # At exit jax would wait for the other processes, which end when this one fails.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _is_in_a_job() -> bool:
    """True if this process has joined others by `jax.distributed`; does not import jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def parse(arguments_class: type[ArgumentsT], **options: Any) -> ArgumentsT:
    """`tyro.cli(arguments_class, **options)`, with what is wrong as an InputError instead of a box of lines."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(arguments_class, **options)
    except SystemExit as ended:
        if not ended.code:
            raise
    # Once more, for a box in which nothing is wrapped; --help keeps to the width of the terminal.
    box = io.StringIO()
    with _columns(1_000_000), contextlib.redirect_stderr(box), contextlib.suppress(SystemExit):
        tyro.cli(arguments_class, **options)
    raise InputError(_message(box.getvalue()))


@contextlib.contextmanager
def _columns(columns: int) -> Iterator[None]:
    """A terminal of that width, for `shutil.get_terminal_size`."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _message(box: str) -> str:
    """The paragraphs of tyro's box that say what is wrong, in one line.

    Rules stand between them, in ASCII where stdout is not UTF-8. Below the title flags are indented by four,
    their help by eight; the last paragraphs are about the help.
    """
    rows = [row.strip("│╰╯") for row in box.splitlines()[1:]]
    paragraphs = [
        " ".join(row.strip() for row in paragraph if not row.startswith(" " * 8))
        for is_rule, paragraph in groupby(rows, lambda row: set(row.strip()) <= set("─-"))
        if not is_rule
    ]
    of_help = ("Argument helptext", "For full helptext")
    message = "; ".join(paragraph for paragraph in paragraphs if not paragraph.startswith(of_help))
    # Of a value that a config refused, the config's own message has the name.
    return re.sub(r"^Error parsing (?!--)\S+: ", "", message).removeprefix("Error parsing ")
