"""The numbers of a masking law, made on the host: tables of counts, so that no backend rounds a product its own way.

They decide no shape, so that one compiled step serves all rates and any stage of a schedule: it gets them as arrays.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int, Integer

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import WORD_BITS

HostOrDevice = Array | np.ndarray


class SelectionTable(NamedTuple):
    """What `mask_tokens` reads of a config's rates."""

    selections: Integer[HostOrDevice, "..."]
    """How many of 0, 1, … length positions are selected: int32 [stages, length + 1]. With `"bernoulli"` below which
    random word a position is: uint32 [stages]."""
    mask_token_rate: Float32[HostOrDevice, ""]
    """A selected position becomes the mask token where its uniform number is below."""
    changed_token_rate: Float32[HostOrDevice, ""]
    """And a random token where it is below that one."""


def selection_table(config: MaskingConfig, length: int) -> SelectionTable:
    """The numbers for rows of `length` tokens, one stage where the rate is constant; NumPy arrays."""
    selections = np.stack([_selections(config, rate, length) for rate in config.stage_rates()])
    changed = config.mask_token_rate + config.random_token_rate
    return SelectionTable(
        selections, np.asarray(config.mask_token_rate, np.float32), np.asarray(changed, np.float32)
    )


def stage_at(step: int | Int[HostOrDevice, ""], num_steps: int, law: SelectionTable) -> Int[Array, ""]:
    """The stage of a step, from 0, of a run of `num_steps`: step · stages // num_steps, which would not fit int32."""
    stages = law.selections.shape[0]
    starts = [-(-stage * num_steps // stages) for stage in range(1, stages)]
    # No step reaches those that are left out.
    reached = np.array([start for start in starts if start < 2**31], np.int32)
    return jnp.sum(step >= reached).astype(jnp.int32)


def _selections(config: MaskingConfig, rate: float, length: int) -> np.ndarray:
    counts = np.arange(length + 1)
    if config.selection == "bernoulli":
        return np.asarray(round(rate * 2**WORD_BITS), np.uint32)
    if config.selection == "ceil":
        return np.ceil(counts.astype(np.float32) * np.float32(rate)).astype(np.int32)
    # Python's round, half to even, of a double, as create_pretraining_data.py has it.
    return np.array([max(1, round(int(count) * rate)) for count in counts], np.int32)
