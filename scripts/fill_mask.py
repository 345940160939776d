"""`mlm-jax fill-mask`, for use in a clone: `python scripts/fill_mask.py`."""

import sys

from mlm_jax.commands import cli, fill_mask


def main() -> None:
    """Runs the command."""
    fill_mask.main(sys.argv[1:], "python scripts/fill_mask.py")


if __name__ == "__main__":
    cli.run(main)
