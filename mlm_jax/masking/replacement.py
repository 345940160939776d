"""Replaces tokens at the selected positions by the mask token or a random token, or keeps them."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, Key

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.rates import SelectionTable
from mlm_jax.threefry import random_below, random_bits


def replacement_ids(
    decide_key: Key[Array, ""],
    draw_key: Key[Array, ""],
    original: Int[Array, " K"],
    config: MaskingConfig,
    table: SelectionTable,
) -> Int[Array, " K"]:
    """Returns the token id for each selected position.

    Each position draws a uniform number u: u < mask_token_rate selects the mask token, u < mask_token_rate +
    random_token_rate a random id, and any other u the original.
    """
    # The bits and the rounding of jax.random.uniform.
    u = (random_bits(decide_key, original.shape) >> 9).astype(jnp.float32) * np.float32(2**-23)
    random_ids = _draw_token_ids(draw_key, original.shape[0], config)
    changed = jnp.where(u < table.changed_token_rate, random_ids, original)
    return jnp.where(u < table.mask_token_rate, config.mask_token_id, changed)


def _draw_token_ids(key: Key[Array, ""], count: int, config: MaskingConfig) -> Int[Array, " count"]:
    """Draws ids uniformly from the random pool.

    Turns a random index into the pool into an id by skipping, in ascending order, each special id at or below it. This
    is exact and needs no table of the size of the vocabulary.
    """
    ids = random_below(key, (count,), max(1, config.random_pool_size))
    if config.random_pool == "no_special":
        for special in config.special_token_ids:
            ids = ids + (ids >= special)
    return ids
