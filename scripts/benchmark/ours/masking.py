"""Contestant: our masking function, jitted."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from mlm_jax.masking.masking import example_keys, mask_tokens
from scripts.benchmark.contest import Round, serve
from scripts.benchmark.step_work import FIRST_WORD_ID, StepWork, token_rows


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round that masks `batches` batches of new examples with the masking unit `unit`; units are rows."""
    work = StepWork(**settings["work"])
    rows = jax.device_put(token_rows(work, work.batch_size))
    masking = replace(
        work.masking,
        unit=settings.get("unit", "token"),
        # As many word continuations as in English text.
        continuation_token_ids=tuple(range(FIRST_WORD_ID, work.model.vocabulary_size, 5)),
    )

    @jax.jit
    def mask(example_ids: jax.Array) -> Any:
        return mask_tokens(example_keys(0, 0, example_ids), rows, masking)

    first = 0

    def batches() -> float:
        nonlocal first
        for _ in range(settings["batches"]):
            masked = mask(np.arange(first, first + work.batch_size, dtype=np.uint32))
            first += work.batch_size
        jax.block_until_ready(masked)
        return settings["batches"] * work.batch_size

    return batches, {"version": f"jax {jax.__version__}"}


if __name__ == "__main__":
    serve(prepare)
