"""Where the smallest of a row's random words are, by counting: no sort, no scatter, integers alone."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, UInt32

WORD_BITS = 31
"""Of a word that is compared; one with more is larger than every word."""

PACKED = 32
"""Positions whose bits are packed into a word."""

_FOLDED = 64


def count_true(chosen: Bool[Array, " length"]) -> Int[Array, ""]:
    """How many. Folded first: XLA for CPU vectorises sums of halves, and adds along a row one by one.

    A product with ones for the same reason; of integers, so that it is exact.
    """
    counts = chosen.astype(jnp.int32)
    while counts.shape[0] > _FOLDED and counts.shape[0] % 2 == 0:
        counts = counts[: counts.shape[0] // 2] + counts[counts.shape[0] // 2 :]
    return jax.lax.dot(counts, jnp.ones_like(counts))


def positions_of_smallest(
    words: UInt32[Array, " length"], count: Int[Array, ""], slots: int
) -> Int[Array, " slots"]:
    """Where the `count` smallest words are, ascending: those that a stable sort would put in front.

    Of them the first `slots`; slots left over hold `length`, which no position has.
    """
    largest = _largest_of_smallest(words, count)
    below, equal = packed(words < largest), packed(words == largest)
    missing = count - count_bits(below)
    end = jnp.where(missing > 0, position_of_rank(equal, missing - 1) + 1, 0)
    chosen = below | (equal & lowest(end, words.shape[0]))
    return jnp.minimum(position_of_rank(chosen, jnp.arange(slots)), words.shape[0])


def smallest_groups(words: UInt32[Array, " length"], count: Int[Array, ""]) -> UInt32[Array, " packed"]:
    """`packed`: the smallest words that are `count` at most, positions of the same word being chosen all or none."""
    largest = _largest_of_smallest(words, count)
    limit = jnp.where(count_true(words <= largest) <= count, largest + 1, largest)
    return packed(words < limit)


def _largest_of_smallest(words: UInt32[Array, " length"], count: Int[Array, ""]) -> UInt32[Array, ""]:
    """The largest of the `count` smallest words, of which none has more than `WORD_BITS` bits.

    Bit by bit, because counting a row some 30 times is faster than sorting it, on a CPU six times.
    """

    def settle(step: Int[Array, ""], settled: UInt32[Array, ""]) -> UInt32[Array, ""]:
        tried = settled | (np.uint32(1 << (WORD_BITS - 1)) >> step.astype(jnp.uint32))
        return jnp.where(count_true(words < tried) < count, tried, settled)

    return jax.lax.fori_loop(0, WORD_BITS, settle, jnp.uint32(0))


def packed(chosen: Bool[Array, " length"]) -> UInt32[Array, " packed"]:
    """A bit a position, the first in the lowest bit of the first word; zeros after the last."""
    words = jnp.pad(chosen, (0, -chosen.shape[0] % PACKED)).reshape(-1, PACKED).astype(jnp.uint32)
    places = jnp.arange(PACKED, dtype=jnp.uint32)
    return jnp.sum(words << places[None], axis=1, dtype=jnp.uint32)


def lowest(count: Int[Array, ""], length: int) -> UInt32[Array, " packed"]:
    """`packed` of the first `count` positions."""
    first_of_word = jnp.arange(0, length, PACKED)
    width = jnp.clip(count - first_of_word, 0, PACKED).astype(jnp.uint32)
    # Twice, because no shift is as wide as the word.
    return ~(~np.uint32(0) << (width // 2) << (width - width // 2))


def count_bits(bits: UInt32[Array, " packed"]) -> Int[Array, ""]:
    """`count_true` of what was packed."""
    return jnp.sum(jax.lax.population_count(bits).astype(jnp.int32))


def first_position(bits: UInt32[Array, " packed"]) -> Int[Array, ""]:
    """Where the first bit is, `position_of_rank` of 0; beyond the last word where there is none."""
    before = jax.lax.population_count((bits & (~bits + 1)) - 1).astype(jnp.int32)
    first_of_word = jnp.arange(0, bits.shape[0] * PACKED, PACKED)
    return jnp.min(jnp.where(bits != 0, first_of_word + before, bits.shape[0] * PACKED))


def position_of_rank(bits: UInt32[Array, " packed"], rank: Int[Array, "*ranks"]) -> Int[Array, "*ranks"]:
    """Where so many others come before: for 0 the first; beyond the last word where there are too few.

    First the word, by how many words end before; then its bit, by halves. Scattering positions to their ranks is
    slower, on a CPU six times.
    """
    in_word = jax.lax.population_count(bits).astype(jnp.int32)
    ends = jnp.cumsum(in_word)
    passed = jnp.expand_dims(ends, range(rank.ndim)) <= rank[..., None]
    index = jnp.sum(passed.astype(jnp.int32), axis=-1)
    word = bits.at[index].get(mode="clip")
    rank = rank - (ends - in_word).at[index].get(mode="clip")
    bit = jnp.zeros_like(rank)
    for width in (16, 8, 4, 2, 1):
        lower = word & np.uint32(2**width - 1)
        below = jax.lax.population_count(lower).astype(jnp.int32)
        beyond = rank >= below
        word, bit = jnp.where(beyond, word >> width, lower), jnp.where(beyond, bit + width, bit)
        rank = jnp.where(beyond, rank - below, rank)
    return index * PACKED + bit
