"""Fill the [MASK] of a text with a trained model's best guesses."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from mlm_jax import cli


@dataclass(frozen=True)
class Arguments:
    """Fill each [MASK] of a text with a trained model's best guesses, the most probable first."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of scripts/train.py."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """A text with at least one [MASK]."""
    top_k: int = 5
    """Guesses a mask."""
    json: bool = False
    """One JSON line: a list of guesses for each mask."""


def main() -> None:
    """Read the arguments, fill, print."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.pretrained import MaskedLM

    masks = MaskedLM.from_run(arguments.run).fill_mask(arguments.text, top_k=arguments.top_k)
    if arguments.json:
        print(json.dumps(masks, ensure_ascii=False))
        return
    for candidates in masks:
        for candidate in candidates:
            print(f"{candidate['score']:6.1%}  {candidate['token_str']:<16} {candidate['sequence']}")
        if candidates is not masks[-1]:
            print()


if __name__ == "__main__":
    cli.run(main)
