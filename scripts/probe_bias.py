"""`mlm-jax probe`, for use in a clone: `python scripts/probe_bias.py`."""

import sys

from mlm_jax.commands import cli


def main() -> None:
    """Runs the command."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import probe

    probe.main(sys.argv[1:], "python scripts/probe_bias.py")


if __name__ == "__main__":
    cli.run(main)
