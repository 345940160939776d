"""Masking rates as selection tables, computed on the host so that rounding never depends on the backend.

The tables are arrays and do not affect shapes, so one compiled step serves all rates and all stages of a schedule.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int, Integer

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import NUMBER_BITS

HostOrDevice = Array | np.ndarray


class SelectionTable(NamedTuple):
    """Rates of a config, in the form that `mask_tokens` uses."""

    selections: Integer[HostOrDevice, "..."]
    """Number of positions to select for each token count 0, 1, … length: int32 [stages, length + 1]. With
    `"bernoulli"`, the threshold below which a position's random number selects it: uint32 [stages]."""
    mask_token_rate: Float32[HostOrDevice, ""]
    """A selected position becomes the mask token if its uniform number is below this rate."""
    changed_token_rate: Float32[HostOrDevice, ""]
    """Otherwise, it becomes a random token if its uniform number is below this rate."""


def selection_table(config: MaskingConfig, length: int) -> SelectionTable:
    """Returns the table for rows of `length` tokens, as NumPy arrays, with one stage if the rate is constant.

    Raises:
        ValueError: `length` is not a whole number of at least 1.
    """
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
        raise ValueError(f"length = {length!r}: must be a whole number, at least 1")
    selections = np.stack([_selections(config, rate, length) for rate in config.stage_rates()])
    changed = config.mask_token_rate + config.random_token_rate
    return SelectionTable(
        selections, np.asarray(config.mask_token_rate, np.float32), np.asarray(changed, np.float32)
    )


def stage_at(step: int | Int[HostOrDevice, ""], num_steps: int, table: SelectionTable) -> Int[Array, ""]:
    """Returns the stage of a step (from 0) in a run of `num_steps`: step · stages // num_steps.

    The product can overflow int32, so the function counts the stages that have started instead.
    """
    stages = table.selections.shape[0]
    starts = [-(-stage * num_steps // stages) for stage in range(1, stages)]
    # Steps are int32 and never reach a later start.
    reachable = np.array([start for start in starts if start < 2**31], np.int32)
    return jnp.sum(step >= reachable).astype(jnp.int32)


def _selections(config: MaskingConfig, rate: float, length: int) -> np.ndarray:
    counts = np.arange(length + 1)
    if config.selection == "bernoulli":
        return np.asarray(round(rate * 2**NUMBER_BITS), np.uint32)
    if config.selection == "ceil":
        return np.ceil(counts.astype(np.float32) * np.float32(rate)).astype(np.int32)
    # Python rounds half to even, as create_pretraining_data.py of google-research/bert does.
    return np.array([max(1, round(int(count) * rate)) for count in counts], np.int32)
