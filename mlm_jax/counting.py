"""The smallest of a row's random words and where they are, by counting: no sort, no scatter, integers alone."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, UInt32

WORD_BITS = 31
"""Of a word that is compared; one with more is larger than every word."""

_PACKED = 32
_FOLDED = 64


def smallest(words: UInt32[Array, " length"], count: Int[Array, ""]) -> Bool[Array, " length"]:
    """True at the `count` smallest words, of equal ones at the first: what a stable sort would put in front."""
    length = words.shape[0]
    largest = _largest_selected(words, count)
    below, equal = words < largest, words == largest
    wanted = count - _count(below)
    last = position_of_rank(equal, wanted - 1)
    return below | (equal & (jnp.arange(length) <= last) & (wanted > 0))


def position_of_rank(chosen: Bool[Array, " length"], rank: Int[Array, "*ranks"]) -> Int[Array, "*ranks"]:
    """Where so many others are chosen before: for 0 the first of the chosen; `length` where there are too few.

    Found in the words of 32 positions by counting bits, because scattering each position to its rank is slower, on a
    CPU six times.
    """
    length, words = chosen.shape[0], _packed(chosen)
    chosen_of_word = jax.lax.population_count(words).astype(jnp.int32)
    ends = jnp.cumsum(chosen_of_word)
    full = jnp.expand_dims(ends, range(rank.ndim)) <= rank[..., None]
    index = jnp.sum(full.astype(jnp.int32), axis=-1)
    word = words.at[index].get(mode="clip")
    rank = rank - (ends - chosen_of_word).at[index].get(mode="clip")
    bit = jnp.zeros_like(rank)
    width = _PACKED // 2
    while width:
        lower = word & np.uint32(2**width - 1)
        below = jax.lax.population_count(lower).astype(jnp.int32)
        beyond = rank >= below
        word, bit = jnp.where(beyond, word >> width, lower), jnp.where(beyond, bit + width, bit)
        rank = jnp.where(beyond, rank - below, rank)
        width //= 2
    return jnp.where(index < words.shape[0], index * _PACKED + bit, length)


def _largest_selected(words: UInt32[Array, " length"], count: Int[Array, ""]) -> UInt32[Array, ""]:
    """The largest of the `count` smallest words, of which none has more than `WORD_BITS` bits.

    Bit by bit, because counting a row some 30 times is faster than sorting it, on a CPU six times.
    """

    def settle(step: Int[Array, ""], settled: UInt32[Array, ""]) -> UInt32[Array, ""]:
        tried = settled | (np.uint32(1 << (WORD_BITS - 1)) >> step.astype(jnp.uint32))
        return jnp.where(_count(words < tried) < count, tried, settled)

    return jax.lax.fori_loop(0, WORD_BITS, settle, jnp.uint32(0))


def _packed(chosen: Bool[Array, " length"]) -> UInt32[Array, " words"]:
    """A bit a position, that of the first the lowest of the first word; zeros after the last."""
    words = jnp.pad(chosen, (0, -chosen.shape[0] % _PACKED)).reshape(-1, _PACKED).astype(jnp.uint32)
    places = jnp.arange(_PACKED, dtype=jnp.uint32)
    return jnp.sum(words << places[None], axis=1, dtype=jnp.uint32)


def _count(chosen: Bool[Array, " length"]) -> Int[Array, ""]:
    """How many. Folded first: XLA for CPU vectorises sums of halves, and adds along a row one by one."""
    counts = chosen.astype(jnp.int32)
    while counts.shape[0] > _FOLDED and counts.shape[0] % 2 == 0:
        counts = counts[: counts.shape[0] // 2] + counts[counts.shape[0] // 2 :]
    return jnp.sum(counts)
