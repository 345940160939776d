"""Rotary embeddings depend only on distances; which layers are local, and how far their windows reach."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config.model import BertConfig
from mlm_jax.model.positions import LayerPositions, positions_of_layers, rotary_table, rotate

LOCAL = BertConfig(
    num_layers=7,
    hidden_dim=32,
    num_heads=4,
    positions="rotary",
    rotary_base=160_000.0,
    local_rotary_base=10_000.0,
    local_attention_window=128,
    global_attention_every=3,
)


def test_scores_of_rotated_vectors_depend_only_on_their_distance() -> None:
    with jax.enable_x64(True):
        query, key = (jax.random.normal(jax.random.key(n), (1, 1, 2, 8), jnp.float64) for n in (0, 1))
        table = rotary_table(jnp.arange(50)[None], 8, 100.0, "float64")
        everywhere = (jnp.broadcast_to(x, (1, 50, 2, 8)) for x in (query, key))
        rotated = [rotate(x, table) for x in everywhere]
        scores = np.asarray(jnp.einsum("blhk,bshk->hls", *rotated))
    for distance in (-30, -1, 0, 7):
        along = np.diagonal(scores, distance, 1, 2)
        np.testing.assert_allclose(along, along[:, :1].repeat(along.shape[1], 1), atol=1e-12)
    # They do depend on the distance.
    assert np.abs(scores[:, 0, 0] - scores[:, 0, 7]).min() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_angles_are_at_least_float32(dtype: str) -> None:
    """In bfloat16, neighbors beyond position 256 would have the same angle."""
    table = rotary_table(jnp.arange(1024)[None], 8, 10_000.0, dtype)
    assert table.dtype == jnp.float32
    angles = np.outer(np.arange(1024), 10_000.0 ** -(np.arange(4) / 4))
    np.testing.assert_allclose(table[:, 0], [np.cos(angles), np.sin(angles)], atol=1e-4)
    x = jnp.ones((1, 1024, 1, 8), dtype)
    assert rotate(x, table).dtype == x.dtype


@pytest.mark.parametrize(("every", "layers"), [(3, {0, 3, 6}), (2, {0, 2, 4, 6})])
def test_every_nth_layer_is_global(every: int, layers: set[int]) -> None:
    """As in ModernBERT-base: layers 0, 3, 6, … are global with rotary base 160,000; the others reach 64 each way."""
    columns = jnp.arange(256)[None]
    of_layer = positions_of_layers(replace(LOCAL, global_attention_every=every), columns, "float32")
    wide, narrow = (np.asarray(rotary_table(columns, 8, base, "float32")) for base in (160_000.0, 10_000.0))
    for index in range(7):
        rotation, reach, bias, is_unnormalized = of_layer(index % every, jnp.asarray(index))
        assert bias is is_unnormalized is None
        assert reach == (None if index in layers else 64)
        np.testing.assert_array_equal(rotation, wide if index in layers else narrow)


def test_bert_has_neither_rotation_nor_reach() -> None:
    assert (
        positions_of_layers(BertConfig(), jnp.arange(256)[None], "float32")(0, jnp.asarray(1))
        == LayerPositions()
    )
