"""Our random bits equal JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.threefry import fold_in, random_below, random_bits, split


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4, 130), (0,)])
def test_the_bits_equal_those_of_jax(shape: tuple[int, ...]) -> None:
    for seed in (0, 1, 2**32 - 1):
        key = jax.random.fold_in(jax.random.key(seed), 5)
        np.testing.assert_array_equal(random_bits(key, shape), jax.random.bits(key, shape, jnp.uint32))


def test_the_bits_equal_those_of_jax_under_vmap() -> None:
    keys = jax.random.split(jax.random.key(3), 11)
    ours = jax.jit(jax.vmap(lambda key: random_bits(key, (6, 9))))(keys)
    np.testing.assert_array_equal(ours, jax.vmap(lambda key: jax.random.bits(key, (6, 9), jnp.uint32))(keys))


@pytest.mark.parametrize("limit", [1, 2, 7, 30_518, 2**16, 2**16 + 1, 119_547, 2**31 - 1])
def test_numbers_below_a_limit_equal_those_of_jax(limit: int) -> None:
    keys = jax.random.split(jax.random.key(4), 50)
    ours = jax.jit(jax.vmap(lambda key: random_below(key, (77,), limit)))(keys)
    theirs = jax.vmap(lambda key: jax.random.randint(key, (77,), 0, limit, jnp.int32))(keys)
    np.testing.assert_array_equal(ours, theirs)


def test_fold_in_and_split_equal_those_of_jax() -> None:
    keys = jax.random.split(jax.random.key(6), 20)
    numbers = np.random.default_rng(0).integers(0, 2**32, 20, dtype=np.uint32)
    numbers[:2] = 0, 2**32 - 1
    ours, theirs = jax.vmap(fold_in)(keys, numbers), jax.vmap(jax.random.fold_in)(keys, numbers)
    np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))
    largest = fold_in(keys[0], 2**32 - 1)
    np.testing.assert_array_equal(
        jax.random.key_data(largest), jax.random.key_data(jax.random.fold_in(keys[0], 2**32 - 1))
    )
    for mine, its in zip(split(keys[0], 3), jax.random.split(keys[0], 3), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(mine), jax.random.key_data(its))


def test_other_generators_are_left_to_jax() -> None:
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(random_bits(key, (8,)), jax.random.bits(key, (8,), jnp.uint32))
    np.testing.assert_array_equal(
        jax.random.key_data(fold_in(key, 3)), jax.random.key_data(jax.random.fold_in(key, 3))
    )


def test_more_than_2_32_numbers_are_left_to_jax() -> None:
    shape = (2**16, 2**16)
    assert jax.eval_shape(lambda: random_bits(jax.random.key(0), shape)).shape == shape
    assert "random_bits" in str(jax.make_jaxpr(lambda: random_bits(jax.random.key(0), shape))())
