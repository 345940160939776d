"""`mlm-jax evaluate`: evaluate a model on prepared data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mlm_jax.commands.flags import parse, positional, required


@dataclass(frozen=True)
class Arguments:
    """Evaluate a model on prepared data, with the same masks every time.

    Prints one line of JSON; non-finite values are null."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    data: str = required("DIR")
    """Folder written by `mlm-jax prepare`."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Evaluates the model, and prints its metrics."""
    parsed = parse(Arguments, arguments, prog)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.run.metrics import finite_values
    from mlm_jax.use.evaluate import evaluate_model

    print(
        json.dumps(finite_values(evaluate_model(parsed.model, parsed.data, progress=True)), allow_nan=False)
    )
