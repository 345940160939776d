"""Evaluate a model on prepared data: one JSON line."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from mlm_jax.commands import cli


@dataclass(frozen=True)
class Arguments:
    """Evaluate a model on prepared data, with the same masks every time: one JSON line, in
    which a figure that is not finite is null."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    data: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of scripts/prepare_data.py."""


def main() -> None:
    """Read the arguments, evaluate, print."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.run.metrics import finite_values
    from mlm_jax.use.evaluate import evaluate_model

    print(
        json.dumps(
            finite_values(evaluate_model(arguments.model, arguments.data, progress=True)), allow_nan=False
        )
    )


if __name__ == "__main__":
    cli.run(main)
