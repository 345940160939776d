"""`mlm-jax tokenizer`, for use in a clone: `python scripts/train_tokenizer.py`."""

import sys

from mlm_jax.commands import cli, tokenizer


def main() -> None:
    """Runs the command."""
    tokenizer.main(sys.argv[1:], "python scripts/train_tokenizer.py")


if __name__ == "__main__":
    cli.run(main)
