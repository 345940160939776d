"""Fill the [MASK] of texts with a model's best guesses."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from mlm_jax.commands import cli


@dataclass(frozen=True)
class Arguments:
    """Fill the [MASK] of texts with a model's best guesses, the most probable first."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """Texts with at least one [MASK] each."""
    top_k: int = 5
    """Guesses a text."""
    targets: tuple[str, ...] = ()
    """Answer with these words alone."""
    joint: bool = True
    """Fill several masks of a text together; --no-joint answers each by itself."""
    json: bool = False
    """A JSON line a text: its guesses, or with --no-joint a list of guesses for each of several masks."""


def main() -> None:
    """Read the arguments, fill, print."""
    arguments = cli.parse(Arguments)
    # Late, so that a mistyped argument is told before jax starts.
    from mlm_jax.use.masked_lm import MaskedLM

    answers = MaskedLM.from_preset(arguments.model).fill_mask(
        arguments.texts, top_k=arguments.top_k, targets=arguments.targets or None, joint=arguments.joint
    )
    for number, answer in enumerate(answers):
        if arguments.json:
            print(json.dumps(answer, ensure_ascii=False))
            continue
        for place, candidates in enumerate(answer if isinstance(answer[0], list) else [answer]):
            if number or place:
                print()
            for candidate in candidates:
                print(_line(candidate))


def _line(candidate: dict[str, Any]) -> str:
    found = candidate["token_str"]
    words = found if isinstance(found, str) else " ".join(found)
    return f"{candidate['score']:6.1%}  {words:<16} {candidate['sequence']}"


if __name__ == "__main__":
    cli.run(main)
