"""`mlm-jax prepare`, for use in a clone: `python scripts/prepare_data.py`."""

import sys

from mlm_jax.commands import cli


def main() -> None:
    """Runs the command."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import prepare

    prepare.main(sys.argv[1:], "python scripts/prepare_data.py")


if __name__ == "__main__":
    cli.run(main)
