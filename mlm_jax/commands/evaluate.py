"""`mlm-jax evaluate`: evaluate a model on prepared data."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mlm_jax.commands.flags import build, parse_given, positional, required
from mlm_jax.config import Packing
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.files.json_files import json_text

_MASKING = "masking."


@dataclass(frozen=True)
class Arguments:
    """Evaluate a model on prepared data, with the same masks every time.

    Rows and masks are by default those of the run that trained the model; losses of different models are comparable
    only with the same flags. Prints one line of JSON with the metrics, the rows and the masks; non-finite values are
    null."""

    model: str = positional("MODEL")
    """A run folder, another model's folder, a built-in name, hf://user/model or kaggle://handle."""
    data: str = required("DIR")
    """Folder written by `mlm-jax prepare`."""
    sequence_length: int | None = None
    """Tokens per row; by default as in training, or 128 if unknown."""
    packing: Packing | None = None
    """Rows: "packed", or one per "document"; by default as in training, or "packed" if unknown."""
    attend_within_documents: bool = False
    """Restrict attention in packed rows to a token's own document; by default as in training."""
    masking: MaskingRecipe = MaskingRecipe()


def main(arguments: Sequence[str], prog: str) -> None:
    """Evaluates the model, and prints its metrics."""
    given = parse_given(Arguments, arguments, prog)
    masking = {name.removeprefix(_MASKING): given[name] for name in given if name.startswith(_MASKING)}
    parsed = build(Arguments, given)
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.use.evaluate import evaluate_model

    found = evaluate_model(
        parsed.model,
        parsed.data,
        sequence_length=parsed.sequence_length,
        packing=parsed.packing,
        attend_within_documents=given.get("attend_within_documents"),
        masking=masking,
        progress=True,
    )
    print(json_text(asdict(found)))
