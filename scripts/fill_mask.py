"""`mlm-jax fill-mask`, for use in a clone: `python scripts/fill_mask.py`."""

import sys

from mlm_jax.commands import cli


def main() -> None:
    """Runs the command."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import fill_mask

    fill_mask.main(sys.argv[1:], "python scripts/fill_mask.py")


if __name__ == "__main__":
    cli.run(main)
