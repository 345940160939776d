"""`mlm-jax probe`, for use in a clone: `python scripts/probe_bias.py`."""

import sys

from mlm_jax.commands import cli, probe


def main() -> None:
    """Runs the command."""
    probe.main(sys.argv[1:], "python scripts/probe_bias.py")


if __name__ == "__main__":
    cli.run(main)
