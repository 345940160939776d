"""Queries, keys and values, and comparisons of attention implementations on them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlm_jax.model.attention import masked_attention
from mlm_jax.model.blocks import visible
from mlm_jax.model.kernels import splash_attention

splash = partial(splash_attention, interpret=True)


def dense(
    query: Array,
    key: Array,
    value: Array,
    padding_mask: Array,
    document_ids: Array | None,
    reach: int | None = None,
) -> Array:
    """The reference, which stores all weights."""
    return masked_attention(query, key, value, visible(padding_mask, document_ids, reach))


def inputs_of(length: int = 128, heads: int = 2, dtype: str = "float32") -> list[Array]:
    """Queries, keys, values and weights of the outputs, for four rows."""
    shape = (4, length, heads, 64)
    return [jax.random.normal(jax.random.key(number), shape, dtype) for number in range(4)]


def rows_of(length: int = 128) -> tuple[Array, Array]:
    """Padding masks and document ids of four rows; one row is all padding, one has none."""
    padding_mask = jnp.arange(length)[None] < jnp.array([length, length // 3, 0, length - 1])[:, None]
    ends = jax.random.bernoulli(jax.random.key(9), 8 / length, (4, length)).astype(jnp.int32)
    return padding_mask, jnp.cumsum(ends, axis=1) - ends


def outputs_and_gradients(
    function: Callable[..., Array],
    inputs: list[Array],
    padding_mask: Array,
    document_ids: Array | None,
    reach: int | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Only for queries that have a key: other outputs are never used, and kernels differ in their gradients.

    `function` has its reach bound.
    """
    *heads, weights = inputs
    keys = visible(padding_mask, document_ids, reach)
    weights = weights * keys.any(-1)[:, :, None, None].astype(weights.dtype)

    def total(*heads: Array) -> tuple[Array, Array]:
        out = function(*heads, padding_mask, document_ids)
        return jnp.sum((out * weights).astype(jnp.float32)), out

    gradients, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*heads)
    return out, gradients


def assert_equal(found: Any, expected: Any) -> None:
    """Compares float32 values."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6, rtol=1e-5)


def assert_equal_to_rounding(found: Any, rounded: Any, exact: Any) -> None:
    """Asserts that bfloat16 values are at most 1.5 times as far from the float32 values as the reference is.

    Two implementations round at different places, so their difference may be as large as the sum of their errors.
    """
    for leaves in zip(*map(jax.tree.leaves, (found, rounded, exact)), strict=True):
        a, b, c = (np.asarray(leaf, np.float32) for leaf in leaves)
        assert 0 < np.abs(b - c).max() < 0.1
        assert np.abs(a - c).max() <= 1.5 * np.abs(b - c).max()
        assert np.abs(a - c).mean() <= 1.5 * np.abs(b - c).mean()
