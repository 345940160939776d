"""`mlm-jax demo`: from text to a filled mask, with the commands that a user would type."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files

from mlm_jax.commands import fill_mask, prepare, tokenizer, train
from mlm_jax.commands.flags import parse
from mlm_jax.files.targets import check_target

SENTENCE = "The Statue of [MASK] is in New York."


@dataclass(frozen=True)
class Arguments:
    """Train BERT-tiny on 478 sentences about places in the United States, then fill a mask.

    Takes about two and a half minutes on two CPU cores. Every command is printed before it runs."""

    output: str = "runs/demo"
    """Run folder; the tokenizer and the data go to folders of the same name plus -tokenizer and -data."""
    num_steps: int = 4000
    """Number of training steps."""


def main(arguments: Sequence[str], prog: str) -> int:
    """Runs the commands; returns 75 if a signal stopped the training."""
    parsed = parse(Arguments, arguments, prog)
    check_target(parsed.output)
    run, steps = parsed.output, str(parsed.num_steps)
    vocabulary, data = f"{run}-tokenizer", f"{run}-data"
    with ExitStack() as stack:
        text = str(stack.enter_context(as_file(files("mlm_jax.demo") / "landmarks.txt")))
        commands = [
            (tokenizer, "tokenizer", ["--input", text, "--vocab-size", "2200", "--output", vocabulary]),
            (prepare, "prepare", ["--input", text, "--tokenizer", vocabulary, "--output", data]),
            (
                train,
                "train",
                [
                    "demo",
                    "--output-dir",
                    run,
                    "--data.path",
                    data,
                    "--data.eval-path",
                    data,
                    "--num-steps",
                    steps,
                ],
            ),
            (fill_mask, "fill-mask", [run, SENTENCE, "--top-k", "5"]),
        ]
        for module, name, words in commands:
            print(f"$ mlm-jax {name} {shlex.join(words)}", flush=True)
            if code := module.main(words, f"mlm-jax {name}"):
                return code
    return 0
