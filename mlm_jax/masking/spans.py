"""Chooses words or spans of words, one per turn, until a budget of tokens is used up. A word is never cut.

    whole words  in uniformly random order, each chosen if it fits the remaining budget and skipped otherwise
                 (create_pretraining_data.py of google-research/bert)
    spans        starting at a word that is uniformly random among those neither chosen nor skipped, with a geometric
                 number of words: p = 0.2, at most 10, 3.8 on average (SpanBERT, Joshi et al. 2020; the probabilities
                 beyond 10 are redistributed, as in the authors' code). A span ends early before a word that is already
                 chosen, an unselectable token, or a word that no longer fits; if its first word does not fit, that
                 word is skipped.

A whole word is a span of one word, so one loop chooses both. Unlike in SpanBERT, each token of a span has its own
replacement decision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Key, UInt32

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.masking.counting import Packed, count_bits, first_bits, first_position, position_of_rank
from mlm_jax.masking.words import Words
from mlm_jax.threefry import random_pair

_LENGTHS = 0.2 * 0.8 ** np.arange(10)
SPAN_THRESHOLDS = np.round(np.cumsum(_LENGTHS)[:-1] / _LENGTHS.sum() * 2**32).astype(np.uint32)
"""A span has more than 1, 2, … 9 words if its random uint32 is at least the respective threshold."""


class Documents(NamedTuple):
    """Documents of a row and their budgets."""

    ends: Packed
    """Set at the last token of each document."""
    budgets: Int[Array, " length"]
    """Number of tokens to choose in each document, at its last token."""


class _State(NamedTuple):
    free: Packed
    """Starts of the current document's words that are neither chosen nor skipped."""
    chosen: Packed
    left: Int[Array, ""]
    """Number of tokens left in the budget of the current document."""
    later: Packed
    """Starts of the words of the documents after the current one."""
    turn: Int[Array, ""]


def fill_row(
    key: Key[Array, ""],
    words: Words,
    chosen: Packed,
    budget: Int[Array, ""],
    length: int,
    config: MaskingConfig,
) -> Packed:
    """Returns `chosen` with at most `budget` more positions set."""
    none = jnp.zeros_like(chosen)
    free = _that_may_fit(words.starts & ~chosen, budget, words)
    start = _State(free=free, chosen=chosen, left=budget, later=none, turn=_zero())

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.left > 0) & jnp.any(state.free != 0)

    def choose_next(state: _State) -> _State:
        return _choose_next(key, state, words, length, config)

    return jax.lax.while_loop(unfinished, choose_next, start).chosen


def fill_documents(
    key: Key[Array, ""], words: Words, documents: Documents, length: int, config: MaskingConfig
) -> Packed:
    """Returns the chosen positions, at most as many in each document as its budget.

    The documents are processed one after the other, because their number is known only at run time.
    """
    none = jnp.zeros_like(words.starts)
    start = _State(free=none, chosen=none, left=_zero(), later=words.starts, turn=_zero())

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.left > 0) & jnp.any(state.free != 0) | jnp.any(state.later != 0)

    def choose_next(state: _State) -> _State:
        finished = (state.left == 0) | jnp.all(state.free == 0)
        before = first_bits(first_position(state.later), length)
        end = first_position(documents.ends & ~before)
        document = first_bits(end + 1, length)
        state = state._replace(
            free=jnp.where(finished, state.later & document, state.free),
            left=jnp.where(finished, documents.budgets.at[end].get(mode="clip"), state.left),
            later=jnp.where(finished, state.later & ~document, state.later),
        )
        return _choose_next(key, state, words, length, config)

    return jax.lax.while_loop(unfinished, choose_next, start).chosen


def _choose_next(
    key: Key[Array, ""], state: _State, words: Words, length: int, config: MaskingConfig
) -> _State:
    """Chooses a word or a span, or skips a word that does not fit."""
    which, how_long = random_pair(key, state.turn)
    start = position_of_rank(state.free, _scale_below(which, count_bits(state.free)))
    before, limit = first_bits(start, length), start + state.left
    ends = words.ends & ~before
    if config.unit == "span":
        blocked = (words.unselectable | state.chosen) & ~before
        ends &= first_bits(jnp.minimum(limit, first_position(blocked)), length)
        more_words = jnp.sum((how_long >= SPAN_THRESHOLDS).astype(jnp.int32))
        last = position_of_rank(ends, jnp.minimum(more_words, count_bits(ends) - 1))
        fits = jnp.any(ends != 0)
    else:
        last = first_position(ends)
        fits = last < limit
    end = jnp.where(fits, last + 1, start)
    span = first_bits(end, length) & ~before
    first_token = first_bits(start + 1, length) & ~before
    left = state.left - (end - start)
    free = _that_may_fit(state.free & ~(span | first_token), left, words)
    return state._replace(free=free, chosen=state.chosen | span, left=left, turn=state.turn + 1)


def _that_may_fit(free: Packed, left: Int[Array, ""], words: Words) -> Packed:
    """Drops words of several tokens if one token is left, which saves the turns that would skip them."""
    return jnp.where(left == 1, free & words.ends, free)


def _zero() -> Int[Array, ""]:
    return jnp.zeros((), jnp.int32)


def _scale_below(bits: UInt32[Array, ""], limit: Int[Array, ""]) -> Int[Array, ""]:
    """Scales a random uint32 to [0, limit), as limit · bits // 2³², for a limit of at most 2¹⁶."""
    limit = limit.astype(jnp.uint32)
    return ((limit * (bits >> 16) + (limit * (bits & 0xFFFF) >> 16)) >> 16).astype(jnp.int32)
