"""Batches that fill a GPU: an estimate of the number of rows, halved until they fit."""

import gc
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from mlm_jax.config import BertConfig
from mlm_jax.model.bert import count_parameters
from scripts.benchmark.contest import Round, Steps
from scripts.benchmark.step_work import StepWork

FittedT = TypeVar("FittedT")

MOST_TOKENS = 65_536
"""Number of tokens per batch beyond which the utilization of a GPU does not increase."""

# Fraction of memory to fill; the rest is for workspaces and temporaries.
_SHARE = 0.8
# Per parameter: a float32 weight, its gradient and its two moments.
_STATE_BYTES = 16
# Per token, layer and unit of width, with two-byte activations (Korthikanti et al. 2022); our step needs the same.
_LAYER_BYTES = 34
# Per query, key and head, if attention weights are kept: float32, a dropout mask, and the result in two bytes.
_WEIGHT_BYTES = 7
# Per predicted position and vocabulary entry: logits in float32, their exponentials and their gradient.
_LOGIT_BYTES = 12
_ROUND_SECONDS = 1.0

# Neither library has one exception type for this: compilers wrap it.
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out.of.memory|STATUS_ALLOC_FAILED", re.IGNORECASE)


def estimated_rows(work: StepWork, memory_bytes: int, *, predicted: int, attention_weights: bool) -> int:
    """Returns the number of rows that should fill a GPU: a power of two, with at most `MOST_TOKENS` tokens in total.

    `predicted` is the number of positions per row whose logits are all stored (none in our step); `attention_weights`
    is True if the L × L weights of each head are stored for the backward pass.
    """
    model, length = work.model, work.sequence_length
    layer = _LAYER_BYTES * model.hidden_dim * length
    if attention_weights:
        layer += _WEIGHT_BYTES * model.num_heads * length * _mean_keys(model, length)
    row = model.num_layers * layer + _LOGIT_BYTES * model.vocabulary_size * predicted
    state = _STATE_BYTES * count_parameters(model, pooler=False, mlm_head=True)
    rows = min(int(_SHARE * memory_bytes - state) // row, MOST_TOKENS // length)
    return 1 << max(rows, 1).bit_length() - 1


def _mean_keys(model: BertConfig, length: int) -> int:
    """Returns the keys per query, in the mean over the layers; blocks of local layers have two windows of keys."""
    window = model.local_attention_window
    if not window:
        return length
    local = min(2 * window, length)
    global_layers = -(-model.num_layers // model.global_attention_every)
    return local + global_layers * (length - local) // model.num_layers


def largest_that_fits(rows: int, attempt: Callable[[int], FittedT]) -> FittedT:
    """Returns `attempt(rows)`, halving `rows` until it does not run out of memory.

    Raises:
        Exception: `attempt` fails for another reason, or runs out of memory with a single row.
    """
    while True:
        try:
            return attempt(rows)
        except Exception as error:
            if rows == 1 or not _OUT_OF_MEMORY.search(str(error)):
                raise
        # Outside the handler, because the error keeps the frames of the attempt, and their arrays, alive.
        gc.collect()
        rows //= 2


def filled_round(work: StepWork, begin: Callable[[StepWork], Steps]) -> tuple[Round, int]:
    """Returns a round of about one second of steps, and its rows per batch: as many as fit, at most `work.batch_size`.

    `begin` creates a model and returns the function that trains it; units are sequences.

    Raises:
        Exception: `begin` or its steps fail for a reason other than memory.
    """

    def attempt(rows: int) -> tuple[int, Steps]:
        take = begin(replace(work, batch_size=rows))
        # Two, because torch allocates the moments at the end of the first.
        take(2)
        return rows, take

    rows, take = largest_that_fits(work.batch_size, attempt)
    started = time.perf_counter()
    take(1)
    steps = math.ceil(_ROUND_SECONDS / (time.perf_counter() - started))

    def work_once() -> float:
        take(steps)
        return steps * rows

    return work_once, rows
