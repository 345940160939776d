"""`mlm-jax compile-check`, for use in a clone: `python scripts/compile_check.py`."""

import sys

from mlm_jax.commands import cli


def main() -> int:
    """Runs the command and returns its exit code."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import compile_check

    return compile_check.main(sys.argv[1:], "python scripts/compile_check.py")


if __name__ == "__main__":
    cli.run(main)
