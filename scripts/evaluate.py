"""`mlm-jax evaluate`, for use in a clone: `python scripts/evaluate.py`."""

import sys

from mlm_jax.commands import cli


def main() -> None:
    """Runs the command."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import evaluate

    evaluate.main(sys.argv[1:], "python scripts/evaluate.py")


if __name__ == "__main__":
    cli.run(main)
