"""Loss and accuracy over all rows of a data set, with masks that are the same in every run."""

from typing import Any

import jax
import numpy as np

from mlm_jax.data.batches import Rows, evaluation_batches
from mlm_jax.model.loss import MaskedLMSums
from mlm_jax.program import Program


def evaluate_rows(program: Program, params: Any, rows: Rows, limit: int | None = None) -> MaskedLMSums:
    """Sums over the rows as float64 on the host; `limit` batches of rows at most, spread over the data.

    The device adds up a batch in float32, the host the batches in float64: with millions of masked tokens a
    float32 total would round away the last ones.
    """
    padding_id = program.setup.masking.padding_token_id
    batches = evaluation_batches(rows, program.evaluation_batch_size, limit, padding_id)
    with jax.set_mesh(program.mesh):
        sums = [program.evaluate(params, program.put(batch)) for batch in batches]
    return MaskedLMSums(*np.sum(np.asarray(jax.device_get(sums), np.float64), axis=0))
