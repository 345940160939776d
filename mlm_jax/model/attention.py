"""Scaled dot-product attention: one function, whatever implements it.

B batch, L query length, S key length, H heads, K head width.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Key

from mlm_jax.model.layers import dropout


@jax.named_scope("attention")
def attend(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    padding_mask: Bool[Array, "B S"],
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L H K"]:
    """softmax(q·k / √K) · v with dropout on the weights (Vaswani et al. 2017), softmax in at least float32.

    Keys where `padding_mask` is False get no weight. The mask is a finite number, so a row that is all padding
    attends uniformly and stays finite, where -inf would give NaN.
    """
    scores = jnp.einsum("blhk,bshk->bhls", query, key) / query.shape[-1] ** 0.5
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    scores = jnp.where(padding_mask[:, None, None, :], scores, 0.5 * jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhls,bshk->blhk", weights, value)
