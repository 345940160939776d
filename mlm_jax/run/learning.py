"""Checks that a run has something to learn, and that it learned until its end."""

from mlm_jax.data.sources import RunData
from mlm_jax.errors import RunError
from mlm_jax.run.reporting import say
from mlm_jax.step.maskable import check_maskable, unknown_share
from mlm_jax.step.program import Program
from mlm_jax.vocabulary.wordpiece import LARGEST_UNKNOWN_SHARE


def check_masking(sources: RunData, program: Program) -> None:
    """Raises InputError if no token of the data can be masked, and warns if many tokens are unknown."""
    setup = program.setup
    for name, rows, masking in (
        ("data.path", sources.train, setup.masking),
        ("data.eval_path", sources.evaluation, setup.eval_masking),
    ):
        if rows is not None:
            check_maskable(rows, masking, name)
            unknown = unknown_share(rows)
            if unknown > LARGEST_UNKNOWN_SHARE:
                say(f"warning: {name}: {unknown:.1%} of the first tokens are unknown, and never masked")


def require_trained_to_the_end(step: int, nonfinite_steps: int, *, masked: bool = True) -> None:
    """Raises RunError if the last steps of a finished run were skipped, or if no step had a masked token.

    A single skipped step at the end does no harm.
    """
    if not masked:
        raise RunError(f"step {step:,}: no step had a masked token, so the run has learned nothing")
    if nonfinite_steps > 1 or nonfinite_steps == step:
        raise RunError(
            f"step {step:,}: the last {nonfinite_steps:,} steps were skipped, so nothing was learned after step "
            f"{step - nonfinite_steps:,}; resume with a lower optimizer.learning_rate and a larger num_steps, or from "
            "an earlier checkpoint if the loss stays non-finite"
        )
