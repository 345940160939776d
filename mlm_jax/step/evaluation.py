"""Loss and accuracy over the rows of a data set, with masks that are the same in every run."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mlm_jax.data.batches import Rows, evaluation_batches
from mlm_jax.model.loss import LossSums
from mlm_jax.parallel.sharding import local_rows
from mlm_jax.step.program import Program


@dataclass(frozen=True)
class Evaluation:
    """Masked-LM evaluation metrics."""

    mlm_loss: float
    """Mean cross-entropy of the masked tokens, in nats; NaN if no token is masked."""
    mlm_accuracy: float
    """Fraction of the masked tokens that are the most probable; of equally probable ones, only the first token counts.

    NaN if no token is masked."""
    perplexity: float
    """exp(mlm_loss); infinity on overflow, NaN if the loss is NaN."""
    masked_tokens: int


def evaluate_rows(
    program: Program,
    params: Any,
    rows: Rows,
    limit: int | None = None,
    watch: Callable[[Iterator[LossSums]], Iterable[LossSums]] = iter,
) -> Evaluation:
    """Evaluates `params` on the rows, or on at most `limit` batches spread evenly over them.

    `watch` wraps the iterator over the sums of the batches, which may not be computed yet.
    """
    padding_id, batch_size = program.setup.masking.padding_token_id, program.evaluation_batch_size
    own_rows, with_words = local_rows(program.mesh, batch_size), program.setup.eval_masking.words_from_data
    batches = evaluation_batches(rows, batch_size, limit, padding_id, own_rows, with_words=with_words)
    with jax.set_mesh(program.mesh):
        sums = (program.evaluate(params, program.put(batch)) for batch in batches)
        return evaluation_of(list(watch(sums)))


def evaluation_of(sums: Sequence[LossSums]) -> Evaluation:
    """Combines the sums of all batches, which are still on the device.

    Each batch is summed in float32 on the device, and the batches in float64 on the host, because rounding would stop a
    float32 total of millions of masked tokens from growing.
    """
    loss, correct, weight = np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0)
    mean, accuracy = (float(total / weight) if weight else math.nan for total in (loss, correct))
    return Evaluation(
        mlm_loss=mean,
        mlm_accuracy=accuracy,
        # The largest double is exp(709.78).
        perplexity=math.inf if mean > 709 else math.exp(mean),
        masked_tokens=round(weight),
    )
