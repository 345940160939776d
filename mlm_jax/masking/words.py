"""Starts and ends of the words of a row, as packed bits.

A word is a selectable token that does not continue another, or that follows an unselectable token, together with the
selectable continuations after it. If a word crosses the edge of a row, only the part inside the row counts. The id of a
token tells that it continues another, or the row comes with this information.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import BLOCK, Packed, pack


class Words(NamedTuple):
    """Words of a row, as packed bits."""

    starts: Packed
    """Set at the first token of each word."""
    ends: Packed
    """Set at the last token of each word, and at unselectable tokens."""
    unselectable: Packed
    """Set at unselectable tokens, and past the end of the row."""


def words_of(
    token_ids: Int[Array, " length"],
    selectable: Bool[Array, " length"],
    config: MaskingConfig,
    continues_word: Bool[Array, " length"] | None = None,
) -> Words:
    """Returns the words of a row; with `unit="token"` every selectable token is a word.

    `continues_word`, True for tokens of the same word as the token before, is needed with `words_from_data`.
    """
    after_selectable = jnp.pad(selectable[:-1], (1, 0))
    if not config.words_from_data:
        continues_word = _continues_word(token_ids, config)
    assert continues_word is not None, "checked by mask_and_count"
    continues = continues_word & selectable & after_selectable
    return Words(
        starts=pack(selectable & ~continues),
        ends=pack(~jnp.pad(continues[1:], (0, 1))),
        unselectable=~pack(selectable),
    )


def starts_of_words(words: Words, length: int) -> Int[Array, " length"]:
    """Returns the start of each token's word; for an unselectable token, the start of the last word before it.

    This is the largest start so far, computed in doubling steps within blocks and then across blocks, because a
    cumulative maximum would visit the positions one by one.
    """
    positions = jnp.arange(words.starts.shape[0] * BLOCK).reshape(-1, BLOCK)
    is_start = words.starts[:, None] >> jnp.arange(BLOCK, dtype=jnp.uint32)[None] & 1 == 1
    starts = jnp.where(is_start, positions, 0)
    for shift in (1, 2, 4, 8, 16):
        starts = jnp.maximum(starts, jnp.pad(starts[:, :-shift], ((0, 0), (shift, 0))))
    earlier = np.tri(len(positions), k=-1, dtype=bool)
    before = jnp.max(jnp.where(earlier, starts[None, :, -1], 0), axis=1)
    return jnp.maximum(starts, before[:, None]).reshape(-1)[:length]


def _continues_word(token_ids: Int[Array, " length"], config: MaskingConfig) -> Bool[Array, " length"]:
    """Returns True at tokens that continue a word, looked up in a bitmap of the vocabulary."""
    if config.unit == "token" or not config.continuation_token_ids:
        return jnp.zeros(token_ids.shape, bool)
    bitmap = np.zeros(-(-config.vocabulary_size // BLOCK), np.uint32)
    ids = np.array(config.continuation_token_ids)
    np.bitwise_or.at(bitmap, ids // BLOCK, np.uint32(1) << (ids % BLOCK).astype(np.uint32))
    block = jnp.asarray(bitmap).at[token_ids // BLOCK].get(mode="clip")
    return (block >> (token_ids % BLOCK).astype(jnp.uint32)) & 1 == 1
