"""`mlm-jax train`, for use in a clone: `python scripts/train.py`."""

import sys

from mlm_jax.commands import cli, train


def main() -> int:
    """Runs the command and returns its exit code."""
    return train.main(sys.argv[1:], "python scripts/train.py")


if __name__ == "__main__":
    cli.run(main)
