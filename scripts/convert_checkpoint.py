"""`mlm-jax convert`, for use in a clone: `python scripts/convert_checkpoint.py`."""

import sys

from mlm_jax.commands import cli


def main() -> None:
    """Runs the command."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import convert

    convert.main(sys.argv[1:], "python scripts/convert_checkpoint.py")


if __name__ == "__main__":
    cli.run(main)
