"""`mlm-jax average`: average the parameters of checkpoints or models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlm_jax.commands.flags import parse, positional, required
from mlm_jax.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Average the parameters of checkpoints of a run, or of several models of the same shape."""

    models: tuple[str, ...] = positional("MODEL")
    """Runs, checkpoints (RUN/checkpoints/STEP) or other models; with --last, one run."""
    output: Path = required("FOLDER")
    """Folder to create for the model."""
    last: int | None = None
    """Average the last checkpoints of the run, this many."""
    weights: tuple[float, ...] = ()
    """Weights of the models, in order and in any unit; by default all are equal."""
    linear: bool = False
    """Weights 1, 2, 3, … in the order of the models or checkpoints."""


def main(arguments: Sequence[str], prog: str) -> None:
    """Averages the models, writes a folder and prints a summary."""
    parsed = parse(Arguments, arguments, prog)
    if parsed.last is not None and len(parsed.models) != 1:
        raise InputError("--last: must be given with one run")
    if parsed.linear and parsed.weights:
        raise InputError("--linear and --weights: must be one of them")
    # Imported late, so that a mistyped flag is reported before jax starts.
    from mlm_jax.corpus.progress import progress_bar
    from mlm_jax.files.atomic import new_folder
    from mlm_jax.formats.model_folder import write_model_folder
    from mlm_jax.store.averaging import average_models, last_checkpoints

    names = list(parsed.models)
    if parsed.last is not None:
        names = [str(folder) for folder in last_checkpoints(parsed.models[0], parsed.last)]
    weights = [float(place) for place in range(1, len(names) + 1)] if parsed.linear else list(parsed.weights)
    with new_folder(parsed.output) as partial, progress_bar(len(names), "model", shown=True) as bar:
        write_model_folder(partial, average_models(names, weights or None, bar.update))
    print(f"{parsed.output}: mean of {', '.join(names)}")
