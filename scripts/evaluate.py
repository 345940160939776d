"""`mlm-jax evaluate`, for use in a clone: `python scripts/evaluate.py`."""

import sys

from mlm_jax.commands import cli, evaluate


def main() -> None:
    """Runs the command."""
    evaluate.main(sys.argv[1:], "python scripts/evaluate.py")


if __name__ == "__main__":
    cli.run(main)
