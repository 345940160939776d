"""Selects the positions of a row to predict.

Each selectable position draws a random number, and the k smallest are selected. The rules differ only in k:

    "ceil"       k = min(ceil(float32(n) · float32(rate)), K)                 KerasHub inside tf.data
    "bernoulli"  k = min(number of draws below rate · 2³¹, K)                 Hugging Face; KerasHub, eager
    "bert"       k = min(K, n, max(1, round(rate · non-padding tokens)))      google-research/bert

with n selectable positions and K = mask_selection_length. The numbers are independent and uniform, so the k smallest
form a uniformly random subset, even if K limits the Bernoulli rule.

With `unit="whole_word"` or `"span"`, k is a budget in tokens, which `mlm_jax.masking.spans` spends; all tokens of a
word share one number. With `quota="document"`, each document of a row has its own n and k.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key, UInt32

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import (
    NUMBER_BITS,
    count_bits,
    count_true,
    pack,
    positions_of_bits,
    positions_of_smallest,
    smallest_groups,
)
from mlm_jax.masking.quotas import document_ends, document_quotas, row_quota
from mlm_jax.masking.rates import HostOrDevice, SelectionTable
from mlm_jax.masking.spans import Documents, fill_documents, fill_row
from mlm_jax.masking.words import starts_of_words, words_of
from mlm_jax.threefry import fold_in, random_bits, random_bits_at

# Larger than every random number, so that unselectable positions come last.
_NEVER = np.uint32(2**32 - 1)


class Selection(NamedTuple):
    """The selected positions of a row."""

    positions: Int[Array, " K"]
    """Ascending; unused slots hold the length of the row, which is not a valid position."""
    wanted: Int[Array, ""]
    """Number of positions that the rule requests, before K limits it."""


def selectable_positions(
    token_ids: Int[HostOrDevice, "*batch length"], config: MaskingConfig
) -> Bool[Array, "*batch length"]:
    """Returns True at positions that may be selected: bool, with the shape of `token_ids`."""
    unselectable = jnp.asarray(config.unselectable_token_ids, jnp.int32)
    return jnp.all(
        jnp.asarray(token_ids)[..., None] != jnp.expand_dims(unselectable, range(token_ids.ndim)), axis=-1
    )


def select_positions(
    key: Key[Array, ""],
    token_ids: Int[Array, " length"],
    config: MaskingConfig,
    table: SelectionTable,
    continues_word: Bool[Array, " length"] | None = None,
) -> Selection:
    """Selects tokens, whole words or spans, by the quota of the row or of each document.

    `continues_word`, True for tokens of the same word as the token before, is needed with `words_from_data`.
    """
    length = token_ids.shape[0]
    slots = config.selection_length(length)
    selectable = selectable_positions(token_ids, config)
    if config.unit == "token" and config.quota == "row":
        numbers = _comparable(random_bits(key, selectable.shape), selectable)
        wanted = _wanted(numbers, token_ids, selectable, config, table)
        return Selection(positions_of_smallest(numbers, jnp.minimum(wanted, slots), slots), wanted)

    words = words_of(token_ids, selectable, config, continues_word)
    if config.quota == "document":
        quotas = document_quotas(token_ids, selectable, config, table)
        # If the quotas exceed the slots, those of the last documents are cut.
        budgets = jnp.clip(slots - (jnp.cumsum(quotas) - quotas), 0, quotas)
        documents = Documents(pack(document_ends(token_ids, config)), budgets)
        chosen, wanted = fill_documents(key, words, documents, length, config), jnp.sum(quotas)
        return Selection(positions_of_bits(chosen, slots, length), wanted)

    if config.unit == "span":
        wanted = row_quota(token_ids, selectable, config, table)
        budget, chosen = jnp.minimum(wanted, slots), jnp.zeros_like(words.starts)
    else:
        numbers = _comparable(random_bits_at(key, starts_of_words(words, length)), selectable)
        wanted = _wanted(numbers, token_ids, selectable, config, table)
        budget = jnp.minimum(wanted, slots)
        # Words in random order up to the first that does not fit; the loop in `fill_row` continues after it.
        chosen = smallest_groups(numbers, budget)
        if config.selection == "bernoulli":
            words = words._replace(starts=words.starts & pack(numbers < table.selections))
    chosen = fill_row(fold_in(key, 0), words, chosen, budget - count_bits(chosen), length, config)
    return Selection(positions_of_bits(chosen, slots, length), wanted)


def _comparable(
    bits: UInt32[Array, " length"], selectable: Bool[Array, " length"]
) -> UInt32[Array, " length"]:
    """Returns random numbers of `NUMBER_BITS` bits, and a larger number at unselectable positions."""
    return jnp.where(selectable, bits >> (32 - NUMBER_BITS), _NEVER)


def _wanted(
    numbers: UInt32[Array, " length"],
    token_ids: Int[Array, " length"],
    selectable: Bool[Array, " length"],
    config: MaskingConfig,
    table: SelectionTable,
) -> Int[Array, ""]:
    """Returns k of the table in the module's docstring, before K limits it."""
    if config.selection == "bernoulli":
        return count_true(numbers < table.selections)
    return row_quota(token_ids, selectable, config, table)
