"""`mlm-jax tokenizer`, for use in a clone: `python scripts/train_tokenizer.py`."""

import sys

from mlm_jax.commands import cli


def main() -> None:
    """Runs the command."""
    # Imported late: a Ctrl-C before `cli.run` ends in a traceback.
    from mlm_jax.commands import tokenizer

    tokenizer.main(sys.argv[1:], "python scripts/train_tokenizer.py")


if __name__ == "__main__":
    cli.run(main)
