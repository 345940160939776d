"""Which words, or spans of words, are masked: turn by turn, each row on its own, among packed bits.

A word is a selectable token that does not continue a word, or that follows one that cannot be selected, and the
selectable continuations after it; at the edge of a row it is what of it is in the row. It is masked whole or not at
all. Budgets are in tokens.

    whole words  in uniformly random order, each masked if it still fits the budget and skipped otherwise
                 (create_pretraining_data.py of google-research/bert)
    spans        from a word that is uniformly random among those neither masked nor skipped, as many words as a
                 geometric distribution says: p = 0.2, at most 10, 3.8 in the mean (SpanBERT, Joshi et al. 2020; the
                 probabilities beyond 10 are shared out, as in the authors' code). It ends early before a word that is
                 masked already, before a token that cannot be selected, and before a word that no longer fits; where
                 its first word does not fit, that word is skipped.

A whole word is a span of one word: one loop finds both, a word or a span a turn. SpanBERT draws one number for the
replacement of all of a span's tokens; here each token has its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key, UInt32

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import PACKED, count_bits, first_position, lowest, packed, position_of_rank
from mlm_jax.threefry import random_pair

Bits = UInt32[Array, " packed"]

_LENGTHS = 0.2 * 0.8 ** np.arange(10)
SPAN_THRESHOLDS = np.round(np.cumsum(_LENGTHS)[:-1] / _LENGTHS.sum() * 2**32).astype(np.uint32)
"""A span has more than 1, 2, … 9 words where its random word is not below these."""


class Words(NamedTuple):
    """The words of a row, packed, a bit a position."""

    starts: Bits
    """Where words start."""
    ends: Bits
    """The last token of each; set at what cannot be selected, too."""
    unselectable: Bits
    """What cannot be selected, and what lies beyond the row."""


class Documents(NamedTuple):
    """The documents of a row and their budgets."""

    ends: Bits
    """The last token of each."""
    budgets: Int[Array, " length"]
    """In tokens, at those positions."""


class _State(NamedTuple):
    free: Bits
    """Where the words start that are neither masked nor skipped, of the document that is being masked."""
    masked: Bits
    left: Int[Array, ""]
    """Of the document's budget."""
    later: Bits
    """Where the words of the documents start that have not been begun."""
    turn: Int[Array, ""]


def words_of(
    token_ids: Int[Array, " length"], selectable: Bool[Array, " length"], config: MaskingConfig
) -> Words:
    """The words of a row; each selectable token, where the unit is the token."""
    after_selectable = jnp.pad(selectable[:-1], (1, 0))
    continues = _continues_word(token_ids, config) & selectable & after_selectable
    return Words(
        starts=packed(selectable & ~continues),
        ends=packed(~jnp.pad(continues[1:], (0, 1))),
        unselectable=~packed(selectable),
    )


def starts_of_words(words: Words, length: int) -> Int[Array, " length"]:
    """Where the word of each token starts; of one that cannot be selected, where the last word before it does.

    The largest start so far, by doublings among the positions that are packed together, and then from one such word of
    bits to the next: a cumulative maximum would go from position to position.
    """
    positions = jnp.arange(words.starts.shape[0] * PACKED).reshape(-1, PACKED)
    is_start = words.starts[:, None] >> jnp.arange(PACKED, dtype=jnp.uint32)[None] & 1 == 1
    starts = jnp.where(is_start, positions, 0)
    for shift in (1, 2, 4, 8, 16):
        starts = jnp.maximum(starts, jnp.pad(starts[:, :-shift], ((0, 0), (shift, 0))))
    earlier = np.tri(len(positions), k=-1, dtype=bool)
    before = jnp.max(jnp.where(earlier, starts[None, :, -1], 0), axis=1)
    return jnp.maximum(starts, before[:, None]).reshape(-1)[:length]


def masked_in_row(
    key: Key[Array, ""], words: Words, masked: Bits, left: Int[Array, ""], length: int, config: MaskingConfig
) -> Bits:
    """The positions that are masked, packed: those of `masked`, and `left` more at most."""
    none = jnp.zeros_like(masked)
    free = _that_may_fit(words.starts & ~masked, left, words)
    start = _State(free=free, masked=masked, left=left, later=none, turn=_zero())

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.left > 0) & jnp.any(state.free != 0)

    def mask_next(state: _State) -> _State:
        return _mask_next(key, state, words, length, config)

    return jax.lax.while_loop(unfinished, mask_next, start).masked


def masked_in_documents(
    key: Key[Array, ""], words: Words, documents: Documents, length: int, config: MaskingConfig
) -> Bits:
    """The positions that are masked, packed, in each document as many as its budget allows.

    One document after the other: how many a row has is known only as it runs.
    """
    none = jnp.zeros_like(words.starts)
    start = _State(free=none, masked=none, left=_zero(), later=words.starts, turn=_zero())

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.left > 0) & jnp.any(state.free != 0) | jnp.any(state.later != 0)

    def mask_next(state: _State) -> _State:
        finished = (state.left == 0) | jnp.all(state.free == 0)
        before = lowest(first_position(state.later), length)
        end = first_position(documents.ends & ~before)
        document = lowest(end + 1, length)
        state = state._replace(
            free=jnp.where(finished, state.later & document, state.free),
            left=jnp.where(finished, documents.budgets.at[end].get(mode="clip"), state.left),
            later=jnp.where(finished, state.later & ~document, state.later),
        )
        return _mask_next(key, state, words, length, config)

    return jax.lax.while_loop(unfinished, mask_next, start).masked


def _mask_next(
    key: Key[Array, ""], state: _State, words: Words, length: int, config: MaskingConfig
) -> _State:
    """Masks a word or a span, or skips a word that does not fit."""
    which, how_long = random_pair(key, state.turn)
    start = position_of_rank(state.free, _below(which, count_bits(state.free)))
    before, limit = lowest(start, length), start + state.left
    ends = words.ends & ~before
    if config.unit == "span":
        blocked = (words.unselectable | state.masked) & ~before
        ends &= lowest(jnp.minimum(limit, first_position(blocked)), length)
        more_words = jnp.sum((how_long >= SPAN_THRESHOLDS).astype(jnp.int32))
        last = position_of_rank(ends, jnp.minimum(more_words, count_bits(ends) - 1))
        fits = jnp.any(ends != 0)
    else:
        last = first_position(ends)
        fits = last < limit
    end = jnp.where(fits, last + 1, start)
    span = lowest(end, length) & ~before
    first_token = lowest(start + 1, length) & ~before
    left = state.left - (end - start)
    free = _that_may_fit(state.free & ~(span | first_token), left, words)
    return state._replace(free=free, masked=state.masked | span, left=left, turn=state.turn + 1)


def _that_may_fit(free: Bits, left: Int[Array, ""], words: Words) -> Bits:
    """Without the words of several tokens, where one is left: turns that would skip them are spared."""
    return jnp.where(left == 1, free & words.ends, free)


def _zero() -> Int[Array, ""]:
    return jnp.zeros((), jnp.int32)


def _below(word: UInt32[Array, ""], limit: Int[Array, ""]) -> Int[Array, ""]:
    """A random word as a number in [0, limit): limit · word // 2³², for a limit of at most 2¹⁶."""
    limit = limit.astype(jnp.uint32)
    return ((limit * (word >> 16) + (limit * (word & 0xFFFF) >> 16)) >> 16).astype(jnp.int32)


def _continues_word(token_ids: Int[Array, " length"], config: MaskingConfig) -> Bool[Array, " length"]:
    """True at tokens that continue a word, looked up in a table of one bit an id."""
    if config.unit == "token" or not config.continuation_token_ids:
        return jnp.zeros(token_ids.shape, bool)
    table = np.zeros(-(-config.vocabulary_size // 32), np.uint32)
    ids = np.array(config.continuation_token_ids)
    np.bitwise_or.at(table, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    word = jnp.asarray(table).at[token_ids // 32].get(mode="clip")
    return (word >> (token_ids % 32).astype(jnp.uint32)) & 1 == 1
