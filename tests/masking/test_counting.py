"""Selection by counting agrees with sorting."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.masking.counting import NUMBER_BITS, count_true, positions_of_smallest

LENGTHS = [1, 2, 31, 32, 33, 77, 128, 500, 512, 1000]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("values", [1, 5, 2**NUMBER_BITS], ids=["all equal", "ties", "distinct"])
def test_the_smallest_match_a_stable_sort(length: int, values: int) -> None:
    random = np.random.default_rng(length)
    numbers = random.integers(0, values, (7, length), dtype=np.uint32)
    # The smallest and the largest number.
    numbers[0], numbers[1, : length // 2] = 2**NUMBER_BITS - 1, 0
    counts = np.array([0, 1, length // 3, length - 1, length, length // 2, min(32, length)], np.int32)
    find = jax.jit(jax.vmap(partial(positions_of_smallest, slots=length + 3)))
    for row, count, found in zip(numbers, counts, np.asarray(find(numbers, counts)), strict=True):
        expected = sorted(np.argsort(row, kind="stable")[:count].tolist())
        assert found.tolist() == expected + [length] * (length + 3 - count)


def test_only_as_many_positions_as_slots_are_returned() -> None:
    numbers = jnp.array([5, 1, 4, 2, 3], jnp.uint32)
    assert positions_of_smallest(numbers, jnp.int32(4), 2).tolist() == [1, 2]


def test_larger_numbers_are_never_among_the_smallest() -> None:
    numbers = jnp.array([2**32 - 1, 7, 2**32 - 1, 2**31 - 1], jnp.uint32)
    assert positions_of_smallest(numbers, jnp.int32(2), 3).tolist() == [1, 3, 4]


@pytest.mark.parametrize("length", LENGTHS)
def test_counts_are_sums(length: int) -> None:
    chosen = np.random.default_rng(length).random(length) < 0.4
    assert count_true(jnp.asarray(chosen)) == chosen.sum()
