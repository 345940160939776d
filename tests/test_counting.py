"""Counting finds what sorting finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.counting import WORD_BITS, position_of_rank, smallest

LENGTHS = [1, 2, 31, 32, 33, 77, 128, 500, 512, 1000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("values", [1, 5, 2**WORD_BITS], ids=["all equal", "ties", "distinct"])
def test_the_smallest_are_those_of_a_stable_sort(length: int, values: int) -> None:
    random = np.random.default_rng(length)
    words = random.integers(0, values, (6, length), dtype=np.uint32)
    # The ends of what a word can be.
    words[0], words[1, : length // 2] = 2**WORD_BITS - 1, 0
    counts = np.array([0, 1, length // 3, length - 1, length, length // 2], np.int32)
    chosen = jax.jit(jax.vmap(smallest))(words, counts)
    for row, count, found in zip(words, counts, np.asarray(chosen), strict=True):
        expected = np.argsort(row, kind="stable")[:count]
        assert np.flatnonzero(found).tolist() == sorted(expected.tolist())


def test_what_is_larger_than_a_word_is_never_among_the_smallest() -> None:
    words = jnp.array([2**32 - 1, 7, 2**32 - 1, 2**31 - 1], jnp.uint32)
    assert smallest(words, jnp.int32(2)).tolist() == [False, True, False, True]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_positions_are_ascending_and_end_with_the_length(length: int, share: float) -> None:
    chosen = np.random.default_rng(length).random(length) < share
    positions = np.flatnonzero(chosen).tolist()
    found = jax.jit(position_of_rank)(chosen, jnp.arange(length + 3))
    assert found.tolist() == positions + [length] * (length + 3 - len(positions))
