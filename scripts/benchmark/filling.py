"""How many rows fill a card: an estimate of what a step keeps, half as many where it was too much, and its rounds."""

import gc
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from mlm_jax.model.bert import count_parameters
from scripts.benchmark.contest import Round, Steps
from scripts.benchmark.step_work import StepWork

FittedT = TypeVar("FittedT")

MOST_TOKENS = 65_536
"""Tokens a batch beyond which a card is no busier."""

# Of memory: the rest is workspace and what is made on the way.
_SHARE = 0.8
# A float32 weight, its gradient and its two moments.
_STATE_BYTES = 16
# A token, layer and unit of width, with activations of two bytes: so many in Korthikanti et al. 2022, and in our step.
_LAYER_BYTES = 34
# A query, key and head, where the weights are kept: in float32, which are dropped, and what is left in two bytes.
_WEIGHT_BYTES = 7
# A predicted position and word: logits in float32, their exponentials and their gradient.
_LOGIT_BYTES = 12
_ROUND_SECONDS = 1.0

# Neither library has an exception for it alone: compilers wrap what they run into.
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out.of.memory|STATUS_ALLOC_FAILED", re.IGNORECASE)


def estimated_rows(work: StepWork, memory_bytes: int, *, predicted: int, attention_weights: bool) -> int:
    """Rows of `work` that should fill a card: a power of two, of at most `MOST_TOKENS` tokens.

    `predicted` is at how many positions of a row all logits are kept, of ours none; `attention_weights` is whether the
    L × L weights of each head are kept for the backward pass.
    """
    model, length = work.model, work.sequence_length
    layer = _LAYER_BYTES * model.hidden_dim * length
    if attention_weights:
        layer += _WEIGHT_BYTES * model.num_heads * length**2
    row = model.num_layers * layer + _LOGIT_BYTES * model.vocabulary_size * predicted
    state = _STATE_BYTES * count_parameters(model, pooler=False, mlm_head=True)
    rows = min(int(_SHARE * memory_bytes - state) // row, MOST_TOKENS // length)
    return 1 << max(rows, 1).bit_length() - 1


def largest_that_fits(rows: int, attempt: Callable[[int], FittedT]) -> FittedT:
    """What `attempt` makes of `rows` rows, or of half as many, as often as it runs out of memory.

    Raises:
        Exception: what `attempt` raises, where it is anything else or there is but one row.
    """
    while True:
        try:
            return attempt(rows)
        except Exception as error:
            if rows == 1 or not _OUT_OF_MEMORY.search(str(error)):
                raise
        # After the handler: until then the error holds the frames of the attempt, and they what it allocated.
        gc.collect()
        rows //= 2


def filled_round(work: StepWork, begin: Callable[[StepWork], Steps]) -> tuple[Round, int]:
    """A round of about a second of steps on as many rows as fit, `work.batch_size` at most, and how many fit.

    `begin` makes a model and what trains it on batches of the work it is given; units are sequences.

    Raises:
        Exception: what `begin` or its steps raise, where fewer rows would not help.
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
