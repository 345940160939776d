"""The vector of a text, which classifiers map to their classes.

B batch, L length, D hidden_dim, S texts of a row.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config.model import BertConfig
from mlm_jax.model.layers import Linear, activate, make_norm
from mlm_jax.model.packed import first_of_texts, mean_of_texts


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
    def pool(
        self,
        hidden: Float[Array, "B L D"],
        padding_mask: Bool[Array, "B L"],
        starts: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B D"] | Float[Array, "B S D"]:
        """Returns the vector of each text, from its first token or from its real tokens.

        A row is one text or, with `starts`, several (see `mlm_jax.model.packed`).
        """
        of_row = jnp.zeros((len(hidden), 1), jnp.int32) if starts is None else starts
        if self.pooling == "cls":
            pooled = self(first_of_texts(hidden, of_row))
        elif self.pooling == "mean":
            pooled = self(mean_of_texts(hidden, padding_mask, of_row))
        else:
            pooled = mean_of_texts(self(hidden), padding_mask, of_row)
        return pooled[:, 0] if starts is None else pooled
