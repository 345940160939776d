"""The vector of a text compared with NumPy, for every kind of pooler and every pooling."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.model.layers import split_model
from mlm_jax.model.pooler import Pooler

CONFIG = BertConfig(hidden_dim=8, num_heads=2, head_layer_norm_epsilon=1e-3)
ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def dense(params: dict[str, Any], kind: str, x: np.ndarray) -> np.ndarray:
    x = x @ params["kernel"] + params.get("bias", 0)
    x = ACTIVATIONS.get(kind, lambda x: x * (1 + erf(x / 2**0.5)) / 2)(x)
    if kind != "head":
        return x
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return x * params["norm"]["scale"] + params["norm"].get("bias", 0)


@pytest.mark.parametrize("kind", ["tanh", "relu", "gelu", "head"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "late"])
@pytest.mark.parametrize("biases", [True, False])
def test_vectors(kind: Any, pooling: Any, biases: bool) -> None:
    config = replace(CONFIG, pooler_kind=kind, pooling=pooling, biases=biases)
    graph, fresh = split_model(nnx.eval_shape(lambda: Pooler(config, key=jax.random.key(0))))
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), fresh)
    # Published models without biases have one in these.
    assert ("bias" in params) == (biases or kind in ("relu", "gelu"))
    hidden, lengths = random.standard_normal((3, 5, 8)).astype(np.float32), [5, 2, 1]
    padding_mask = jnp.asarray(np.arange(5) < np.array(lengths)[:, None])
    pooler = nnx.merge(graph, jax.tree.map(jnp.asarray, params))
    found = pooler.pool(jnp.asarray(hidden), padding_mask)
    # The same texts in one row of 9, of which the last column is padding, and of at most four.
    packed = np.concatenate(
        [*(text[:length] for text, length in zip(hidden, lengths, strict=True)), hidden[1, 4:]]
    )
    starts, real = jnp.asarray([[0, 5, 7, 9]], jnp.int32), jnp.arange(9)[None] < 8
    of_row = pooler.pool(jnp.asarray(packed)[None], real, starts)
    assert of_row.shape == (1, 4, 8)
    np.testing.assert_allclose(of_row[0, :3], found, atol=1e-5)
    for text, length, vector in zip(hidden, lengths, found, strict=True):
        real = text[:length]
        expected = {
            "cls": lambda real: dense(params, kind, real[0]),
            "mean": lambda real: dense(params, kind, real.mean(0)),
            "late": lambda real: dense(params, kind, real).mean(0),
        }[pooling](real)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_pooler_like_the_head_needs_a_head_like_it() -> None:
    with pytest.raises(InputError, match="pooler_kind = 'head': must be another with embedding_dim"):
        replace(CONFIG, pooler_kind="head", embedding_dim=4)
