"""Entry point of `mlm-jax COMMAND …` and `python -m mlm_jax COMMAND …`. Imports only the module of that command.

The other imports are late, too, because a Ctrl-C before `cli.run` ends in a traceback.
"""

import importlib
import sys
from collections.abc import Sequence

import mlm_jax
from mlm_jax.commands import cli
from mlm_jax.errors import InputError

SUMMARY = "Pretraining of BERT-style encoders with masked language modeling, in JAX."

COMMANDS = {
    "demo": "Train a small model on a built-in text, and fill a mask.",
    "tokenizer": "Train a WordPiece vocabulary on text.",
    "prepare": "Tokenize text into the shards that training reads.",
    "merge": "Merge the parts that a job array prepared.",
    "verify": "Compare data, checkpoints and models with their checksums.",
    "train": "Train a masked language model, or resume a run.",
    "evaluate": "Evaluate a model on prepared data.",
    "fill-mask": "Fill the masks in texts.",
    "features": "Write a model's features of texts to a file.",
    "finetune": "Fine-tune a model as a text classifier.",
    "probe": "Probe a model for bias or grammar.",
    "convert": "Convert a model to mlm_jax, Hugging Face, Google or KerasHub.",
    "average": "Average checkpoints of a run, or several models.",
    "extend": "Give a model new words, or another tokenizer.",
    "ablate": "Run a sweep of configs and seeds, and write its report.",
    "compile-check": "Check that a train step fits on chips that are not attached.",
}
"""Summary of each command, in the order in which users need them. `mlm_jax/commands` has a module for each."""


def main() -> None:
    """Runs the command given on the command line, and exits."""
    cli.run(lambda: run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int | None:
    """Runs a command and returns its exit code. Raises InputError if there is no such command."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        rows = "\n".join(f"  {command:<15}{summary}" for command, summary in COMMANDS.items())
        print(f"usage: mlm-jax COMMAND …\n\n{SUMMARY}\n\ncommands (each has --help):\n{rows}")
        return 0
    if name == "--version":
        print(f"mlm-jax {mlm_jax.__version__}")
        return 0
    if name not in COMMANDS:
        from mlm_jax.config.settings import nearest_name

        raise InputError(f"{name}: no such command{nearest_name(name, COMMANDS)}; mlm-jax --help lists them")
    command = importlib.import_module(f"mlm_jax.commands.{name.replace('-', '_')}")
    code: int | None = command.main(arguments[1:], f"mlm-jax {name}")
    return code


if __name__ == "__main__":
    main()
