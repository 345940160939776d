"""Contestant: from raw text to trained steps, with an epoch over new documents per round."""

from typing import Any

import jax
import numpy as np

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import resolve_masking, tokenize_run_data
from mlm_jax.run.host_memory import keep_freed_memory
from mlm_jax.text.tokenizer import Tokenizer
from scripts.benchmark.contest import Round, serve
from scripts.benchmark.corpus import document_slices
from scripts.benchmark.ours.step import step_program
from scripts.benchmark.step_work import StepWork


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round of one epoch; units are the real tokens of its complete batches."""
    keep_freed_memory()
    work = StepWork(**settings["work"])
    tokenizer = Tokenizer.load(settings["tokenizer"])
    slices = document_slices(settings["texts"], settings["documents"])
    recipe = MaskingRecipe(mask_selection_length=work.masked)
    program = step_program(work, resolve_masking(recipe, tokenizer, work.sequence_length))
    votes = program.stop_votes(False)
    state = program.initial_state()
    config = DataConfig(sequence_length=work.sequence_length)

    def epoch() -> float:
        nonlocal state
        rows = tokenize_run_data(next(slices), None, tokenizer, config).train
        batches = TrainingBatches(rows, BatchSizes(work.batch_size), seed=0)
        real = 0
        for batch in batches.from_step(0, rows.num_rows // work.batch_size, config.prefetch_batches):
            state, metrics = program.train(state, program.put(batch), votes)
            real += int(np.count_nonzero(batch.token_ids != tokenizer.pad_token_id))
        jax.block_until_ready((state, metrics))
        return real

    return epoch, {"version": f"jax {jax.__version__}"}


if __name__ == "__main__":
    serve(prepare)
