"""One layer of the encoder: self-attention and feed-forward with their norms and residual connections.

B batch, L length, D hidden_dim.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import Attention
from mlm_jax.config.model import BertConfig
from mlm_jax.model.attention import attend
from mlm_jax.model.layers import Linear, activate, dropout, make_norm, recomputed
from mlm_jax.model.positions import LayerPositions, rotate

_EVERYWHERE = LayerPositions()


class SelfAttention(nnx.Module):
    """Multi-head self-attention with its output projection."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        keys = jax.random.split(key, 4)
        hidden, heads = (config.hidden_dim,), (config.num_heads, config.head_dim)
        few_heads = (config.key_value_heads, config.head_dim)
        self.queries_of_key = config.num_heads // config.key_value_heads
        biases = config.biases and config.attention_biases
        linear = partial(Linear, stddev=config.initializer_stddev, bias=biases)
        self.dropout_rate = config.attention_dropout_rate
        self.query = linear(hidden, heads, ("embed", "heads", "head_dim"), key=keys[0])
        self.key = linear(hidden, few_heads, ("embed", "heads", "head_dim"), key=keys[1])
        self.value = linear(hidden, few_heads, ("embed", "heads", "head_dim"), key=keys[2])
        self.output = linear(heads, hidden, ("heads", "head_dim", "embed"), key=keys[3])

    def __call__(
        self,
        x: Float[Array, "B L D"],
        padding_mask: Bool[Array, "B L"],
        dropout_key: Key[Array, ""] | None,
        document_ids: Int[Array, "B L"] | None = None,
        implementation: Attention = "auto",
        positions: LayerPositions = _EVERYWHERE,
    ) -> Float[Array, "B L D"]:
        """Returns attention over the real tokens of the row, window or document, after the output projection.

        Does not add the residual.
        """
        query, key, value = self.query(x), self.key(x), self.value(x)
        if positions.rotation is not None:
            query, key = rotate(query, positions.rotation), rotate(key, positions.rotation)
        if self.queries_of_key > 1:
            key, value = (jnp.repeat(each, self.queries_of_key, axis=2) for each in (key, value))
        attended = attend(
            query,
            key,
            value,
            padding_mask,
            document_ids,
            positions.reach,
            positions.bias,
            implementation=implementation,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
        )
        return self.output(attended)


class FeedForward(nnx.Module):
    """Two linear maps with an activation between them, optionally gated (Shazeer 2020)."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        up_key, down_key, gate_key = jax.random.split(key, 3)
        hidden, inner = (config.hidden_dim,), (config.intermediate_dim,)
        linear = partial(Linear, stddev=config.initializer_stddev)
        biases = config.feed_forward_biases if config.biases else "none"
        self.activation = config.activation
        self.up = linear(hidden, inner, ("embed", "intermediate"), key=up_key, bias=biases == "all")
        self.down = linear(inner, hidden, ("intermediate", "embed"), key=down_key, bias=biases != "none")
        if config.gated:
            # Not a single kernel of twice the width, because a tensor axis would put gate and up on different devices.
            self.gate = linear(hidden, inner, ("embed", "intermediate"), key=gate_key, bias=biases == "all")

    @jax.named_scope("feed_forward")
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns the output of the last map, without the residual."""
        # The backward pass recomputes the input of the last map and does not need its output.
        if hasattr(self, "gate"):
            return recomputed(lambda gate, up: self.down(activate(gate, self.activation) * up))(
                self.gate(x), self.up(x)
            )
        return recomputed(lambda inner: self.down(activate(inner, self.activation)))(self.up(x))


class BertLayer(nnx.Module):
    """Attention and feed-forward, each followed by dropout and a residual connection.

    The norms follow the residual connections ("post", Vaswani et al. 2017) or precede attention and feed-forward
    ("pre", Xiong et al. 2020).
    """

    def __init__(self, config: BertConfig, key: Key[Array, ""]) -> None:
        keys = jax.random.split(key, 4)
        epsilon = config.layer_norm_epsilon
        self.dropout_rate, self.norm_placement = config.dropout_rate, config.norm_placement
        self.attention = SelfAttention(config, key=keys[0])
        self.attention_norm = make_norm(config, epsilon=epsilon, key=keys[1])
        self.feed_forward = FeedForward(config, key=keys[2])
        self.feed_forward_norm = make_norm(config, epsilon=epsilon, key=keys[3])

    def __call__(
        self,
        x: Float[Array, "B L D"],
        padding_mask: Bool[Array, "B L"],
        dropout_key: Key[Array, ""] | None,
        document_ids: Int[Array, "B L"] | None = None,
        implementation: Attention = "auto",
        positions: LayerPositions = _EVERYWHERE,
    ) -> Float[Array, "B L D"]:
        """Returns the layer's output; without a `dropout_key` there is no dropout."""
        keys = (None, None, None) if dropout_key is None else tuple(jax.random.split(dropout_key, 3))

        def attention(x: Array) -> Array:
            attended = self.attention(x, padding_mask, keys[0], document_ids, implementation, positions)
            return dropout(attended, self.dropout_rate, keys[1])

        def feed_forward(x: Array) -> Array:
            return dropout(self.feed_forward(x), self.dropout_rate, keys[2])

        if self.norm_placement == "pre":
            normalized = self.attention_norm(x)
            if positions.is_unnormalized is not None:
                normalized = jnp.where(positions.is_unnormalized, x, normalized)
            x = x + attention(normalized)
            return x + feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + attention(x))
        return self.feed_forward_norm(x + feed_forward(x))
