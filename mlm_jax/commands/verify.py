"""`mlm-jax verify`: compare data, checkpoints and models with their checksums."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mlm_jax.commands.flags import parse, positional
from mlm_jax.errors import EXIT_BAD_INPUT, InputError


@dataclass(frozen=True)
class Arguments:
    """Read folders completely, and compare their contents with their checksums.

    A folder may be prepared data (or its URL), a run, or a model. Prints one line per folder."""

    folders: tuple[str, ...] = positional("FOLDER")
    """Folders to verify."""


def main(arguments: Sequence[str], prog: str) -> int:
    """Verifies all folders; returns 2 if one is damaged."""
    parsed = parse(Arguments, arguments, prog)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.store.verification import verify

    code = 0
    for folder in parsed.folders:
        try:
            print(f"{folder}: {verify(folder)}")
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            code = EXIT_BAD_INPUT
    return code
