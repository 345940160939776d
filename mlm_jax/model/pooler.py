"""The vector of a text, which classifiers map to their classes.

B batch, L length, D hidden_dim.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Key

from mlm_jax.config.model import BertConfig
from mlm_jax.model.layers import Linear, activate, make_norm


class Pooler(Linear):
    """Dense layer, activation and, if it is like the MLM head, a norm."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        kind, width = config.pooler_kind, (config.hidden_dim,)
        stddev, bias = config.initializer_stddev, config.biases or kind in ("relu", "gelu")
        super().__init__(width, width, ("embed", "pooled"), stddev=stddev, key=key, bias=bias)
        self.pooling = config.pooling
        self.activation = config.head_activation if kind == "head" else kind
        if kind == "head":
            self.norm = make_norm(config, epsilon=config.head_layer_norm_epsilon, key=key)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the vectors of hidden states or of means of these."""
        x = activate(super().__call__(x), self.activation)
        return self.norm(x) if hasattr(self, "norm") else x

    @jax.named_scope("pooler")
    def pool(self, hidden: Float[Array, "B L D"], padding_mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
        """Returns the vector of each text, from its first token or from the real tokens."""
        if self.pooling == "cls":
            return self(hidden[:, 0])
        return (
            _mean(self(hidden), padding_mask) if self.pooling == "late" else self(_mean(hidden, padding_mask))
        )


def _mean(x: Float[Array, "B L D"], padding_mask: Bool[Array, "B L"]) -> Float[Array, "B D"]:
    """Returns the mean over the real tokens, or 0 if there are none."""
    count = jnp.sum(padding_mask, axis=1, keepdims=True).astype(x.dtype)
    return jnp.sum(x, axis=1, where=padding_mask[..., None]) / jnp.maximum(count, 1.0)
