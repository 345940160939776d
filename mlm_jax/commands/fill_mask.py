"""`mlm-jax fill-mask`: fill the masks in texts with a model's best guesses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlm_jax.commands.flags import parse, positional
from mlm_jax.commands.process import as_text
from mlm_jax.files.json_files import json_text


@dataclass(frozen=True)
class Arguments:
    """Fill the masks in texts with a model's best guesses, most probable first."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    texts: tuple[str, ...] = positional("TEXT")
    """Texts with at least one [MASK] each."""
    top_k: int = 5
    """Number of guesses per text, or per mask with --no-joint."""
    targets: tuple[str, ...] = ()
    """Words to choose from; by default the whole vocabulary."""
    joint: bool = True
    """Fill the masks of a text jointly; --no-joint fills each independently."""
    json: bool = False
    """Print one line of JSON per text: its guesses or, with --no-joint, a list of guesses per mask."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Fills the masks, and prints the guesses."""
    parsed = parse(Arguments, arguments, prog)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.use.masked_lm import MaskedLM

    answers = MaskedLM.from_preset(parsed.model).fill_mask(
        [as_text(text) for text in parsed.texts],
        top_k=parsed.top_k,
        targets=[as_text(target) for target in parsed.targets] or None,
        joint=parsed.joint,
    )
    for number, answer in enumerate(answers):
        if parsed.json:
            print(json_text(answer, ensure_ascii=False))
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
