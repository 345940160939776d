"""Local attention in blocks equals dense attention with a mask, in time and memory linear in the length."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.model.attention import attend, xla_attention
from mlm_jax.model.blocks import visible
from tests.model.heads import assert_equal, dense, inputs_of, outputs_and_gradients, rows_of
from tests.model.test_attention import mesh_of


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("length", "reach"), [(128, 8), (100, 8), (97, 1), (70, 16), (20, 16), (128, 127)])
def test_blocks_match_dense_attention_in_float64(length: int, reach: int, padded: bool, within: bool) -> None:
    """Queries without a key in reach attend to other positions in blocks, and nothing reads their outputs."""
    with jax.enable_x64(True):
        inputs = [x.astype(jnp.float64) for x in inputs_of(length)]
        padding_mask, document_ids = rows_of(length)
        rows = padding_mask | (not padded), document_ids if within else None
        (found, gradients), (expected, expected_gradients) = (
            outputs_and_gradients(partial(function, reach=reach), inputs, *rows, reach)
            for function in (xla_attention, dense)
        )
        read = np.broadcast_to(visible(*rows, reach).any(axis=-1), (4, length))
        np.testing.assert_allclose(found[read], expected[read], atol=1e-12)
        assert np.isfinite(found).all()
        for a, b in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_blocks_on_a_mesh_with_sharded_heads() -> None:
    inputs, rows = inputs_of(), rows_of()
    expected = outputs_and_gradients(partial(dense, reach=8), inputs, *rows, 8)
    with jax.set_mesh(mesh_of((2, 2, 2))):
        found = outputs_and_gradients(partial(attend, reach=8), inputs, *rows, 8)
    read = visible(*rows, 8).any(axis=-1)[:, :, None, None]
    assert_equal((found[0] * read, found[1]), (expected[0] * read, expected[1]))


def test_dropout_falls_on_the_weights_of_blocks() -> None:
    query, key, value, _ = inputs_of()
    ones = jnp.ones_like(value)
    drops = {"dropout_rate": 0.25, "dropout_key": jax.random.key(0)}
    dropped = attend(query, key, ones, jnp.ones((4, 128), bool), reach=8, **drops)
    # The weights of a query sum to 1, and on average still do.
    assert 0.05 < float(dropped.std()) < 0.5
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.02)


def test_no_array_has_two_dimensions_of_the_length() -> None:
    inputs, rows = inputs_of(1024), rows_of(1024)

    def total(*heads: jax.Array, reach: int | None) -> jax.Array:
        return jnp.sum(attend(*heads, *rows, reach) * inputs[3])

    def arrays(reach: int | None) -> str:
        gradients = jax.grad(partial(total, reach=reach), argnums=(0, 1, 2))
        return jax.jit(gradients).lower(*inputs[:3]).as_text()

    assert "x1024x1024x" in arrays(None)
    assert "1024x1024" not in arrays(16)
