"""Evaluate a run's newest checkpoint on prepared data: one JSON line."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from mlm_jax import cli


@dataclass(frozen=True)
class Arguments:
    """Evaluate a run's newest checkpoint on prepared data, with the same masks every time: one JSON line, in
    which a figure that is not finite is null."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of scripts/train.py."""
    data: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder of scripts/prepare_data.py."""


def main() -> None:
    """Read the arguments, evaluate, print."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.metrics import finite_values
    from mlm_jax.pretrained import evaluate_run

    print(json.dumps(finite_values(evaluate_run(arguments.run, arguments.data)), allow_nan=False))


if __name__ == "__main__":
    cli.run(main)
