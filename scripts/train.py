"""`mlm-jax train`, for use in a clone: `python scripts/train.py`."""

import sys

from mlm_jax.commands import cli


def main() -> int:
    """Runs the command and returns its exit code."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import train

    return train.main(sys.argv[1:], "python scripts/train.py")


if __name__ == "__main__":
    cli.run(main)
