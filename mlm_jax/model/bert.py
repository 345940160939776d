"""BERT (Devlin et al. 2018) and later variants in Flax NNX: embeddings, layers, encoder, pooler, tied MLM head.

B batch, L length, D hidden_dim, K masked positions, V vocabulary.

Layers are stacked: each weight is one array with a leading axis `layers`, and a scan applies the layers, so that
compile time does not grow with depth. Dropout keys are arguments; no module has mutable state.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import Attention, ComputeConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.model.attention import attend
from mlm_jax.model.layers import Linear, activate, dropout, make_norm, parameter, recomputed
from mlm_jax.model.positions import LayerPositions, positions_of_layers, rotate
from mlm_jax.parallel.sharding import constrain

_DEFAULT_COMPUTE = ComputeConfig()
_EVERYWHERE = LayerPositions()


class Embeddings(nnx.Module):
    """Normalized sum of token embeddings and, if the model has them, position and segment embeddings."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        token_key, position_key, segment_key, norm_key = jax.random.split(key, 4)
        width, stddev = config.hidden_dim, config.initializer_stddev
        self.dropout_rate = config.dropout_rate if config.embedding_dropout else 0.0
        self.token = parameter(
            token_key, (config.padded_vocabulary_size, width), ("vocabulary", "embed"), stddev=stddev
        )
        if config.positions == "learned":
            self.first_position = config.position_offset
            rows = config.position_offset + config.max_sequence_length
            self.position = parameter(position_key, (rows, width), ("position", "embed"), stddev=stddev)
        if config.num_segments:
            self.segment = parameter(
                segment_key, (config.num_segments, width), ("segment", "embed"), stddev=stddev
            )
        if config.embedding_norm:
            self.norm = make_norm(config, epsilon=config.layer_norm_epsilon, key=norm_key)

    @jax.named_scope("embeddings")
    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        segment_ids: Int[Array, "B L"] | None,
        dropout_key: Key[Array, ""] | None,
        dtype: str,
    ) -> Float[Array, "B L D"]:
        """Returns the sum of the embeddings, normalized in `dtype`; `segment_ids` default to 0.

        Raises:
            InputError: `segment_ids` are given and the model has no segment embeddings.
        """
        # Each table is gathered over fsdp before the lookup. Otherwise the partitioner looks up slices of the width
        # and then reshards whole activations.
        token = constrain(self.token[...], "vocabulary", "hidden")
        x = constrain(token[token_ids], "batch", "length", "hidden")
        if hasattr(self, "segment"):
            segment = constrain(self.segment[...], "segment", "hidden")
            if segment_ids is None:
                segment_ids = jnp.zeros_like(token_ids)
            x = x + constrain(segment[segment_ids], "batch", "length", "hidden")
        elif segment_ids is not None:
            raise InputError("segment_ids: must be None, because the model has model.num_segments = 0")
        if hasattr(self, "position"):
            position = constrain(self.position[...], "position", "hidden")
            first = self.first_position
            x = x + position[None, first : first + token_ids.shape[1]]
        x = x.astype(dtype)
        if hasattr(self, "norm"):
            x = self.norm(x)
        return dropout(x, self.dropout_rate, dropout_key)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with its output projection."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        keys = jax.random.split(key, 4)
        hidden, heads = (config.hidden_dim,), (config.num_heads, config.head_dim)
        linear = partial(Linear, stddev=config.initializer_stddev, bias=config.biases)
        self.dropout_rate = config.attention_dropout_rate
        self.query = linear(hidden, heads, ("embed", "heads", "head_dim"), key=keys[0])
        self.key = linear(hidden, heads, ("embed", "heads", "head_dim"), key=keys[1])
        self.value = linear(hidden, heads, ("embed", "heads", "head_dim"), key=keys[2])
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
        query, key = self.query(x), self.key(x)
        if positions.rotation is not None:
            query, key = rotate(query, positions.rotation), rotate(key, positions.rotation)
        attended = attend(
            query,
            key,
            self.value(x),
            padding_mask,
            document_ids,
            positions.reach,
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
        linear = partial(Linear, stddev=config.initializer_stddev, bias=config.biases)
        self.activation = config.activation
        self.up = linear(hidden, inner, ("embed", "intermediate"), key=up_key)
        self.down = linear(inner, hidden, ("intermediate", "embed"), key=down_key)
        if config.gated:
            # Not a single kernel of twice the width, because a tensor axis would put gate and up on different devices.
            self.gate = linear(hidden, inner, ("embed", "intermediate"), key=gate_key)

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
            x = x + attention(self.attention_norm(x))
            return x + feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + attention(x))
        return self.feed_forward_norm(x + feed_forward(x))


class BertEncoder(nnx.Module):
    """Backbone: embeddings, layers, a final norm if the layers are pre-normalized, and an optional pooler."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        embeddings_key, layers_key, pooler_key, norm_key = jax.random.split(key, 4)
        self.config = config
        self.embeddings = Embeddings(config, key=embeddings_key)
        make_layers = nnx.vmap(
            BertLayer, in_axes=(None, 0), transform_metadata={nnx.PARTITION_NAME: "layers"}
        )
        self.layers = make_layers(config, jax.random.split(layers_key, config.num_layers))
        if config.norm_placement == "pre":
            self.final_norm = make_norm(config, epsilon=config.layer_norm_epsilon, key=norm_key)
        if config.pooler:
            width = (config.hidden_dim,)
            self.pooler = Linear(
                width,
                width,
                ("embed", "pooled"),
                stddev=config.initializer_stddev,
                key=pooler_key,
                bias=config.biases,
            )

    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        padding_mask: Bool[Array, "B L"],
        segment_ids: Int[Array, "B L"] | None = None,
        *,
        document_ids: Int[Array, "B L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        compute: ComputeConfig = _DEFAULT_COMPUTE,
        depth: int | tuple[int, ...] | None = None,
    ) -> Float[Array, "B L D"] | Float[Array, "depths B L D"]:
        """Returns the last hidden states, in `compute.dtype`, or those after `depth` layers or each of several depths.

        `padding_mask` is True at real tokens. `segment_ids` default to 0. With `document_ids`, tokens attend only
        within their document. Without a `dropout_key` there is no dropout. Between pre-normalized layers, hidden states
        are the residual stream; after the last layer, they are normalized.

        Raises:
            InputError: `segment_ids` are given and the model has no segment embeddings.
        """
        depth = self.config.num_layers if depth is None else depth
        deepest = max(depth) if isinstance(depth, tuple) else depth
        embeddings_key, layers_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        x = self.embeddings(token_ids, segment_ids, embeddings_key, compute.dtype)
        graph, stacked = nnx.split(self.layers)
        inputs = jax.tree.map(
            lambda weights: weights[:deepest], (stacked, jnp.arange(self.config.num_layers))
        )
        positions = positions_of_layers(self.config, token_ids.shape[1], compute.dtype)

        def apply_layer(x: Array, inputs: tuple[Any, Array]) -> tuple[Array, Array | None]:
            weights, index = inputs
            key = None if layers_key is None else jax.random.fold_in(layers_key, index)
            with jax.named_scope("layer"):
                layer = nnx.merge(graph, weights)
                x = layer(x, padding_mask, key, document_ids, compute.attention, positions(index))
            x = constrain(x, "batch", "length", "hidden")
            return x, x if isinstance(depth, tuple) else None

        embedded = constrain(x, "batch", "length", "hidden")
        apply = rematerialize(apply_layer, compute)
        x, states = jax.lax.scan(apply, embedded, inputs, unroll=compute.scan_unroll)
        if isinstance(depth, tuple):
            return jnp.stack([self._output(states[d - 1] if d else embedded, d) for d in depth])
        return self._output(x, depth)

    def _output(self, x: Float[Array, "B L D"], depth: int) -> Float[Array, "B L D"]:
        is_last = depth == self.config.num_layers
        return self.final_norm(x) if is_last and hasattr(self, "final_norm") else x

    def pool(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        """Returns BERT's sentence vector: tanh of a linear map of the first position."""
        return jnp.tanh(self.pooler(hidden[:, 0]))


def rematerialize(function: Any, compute: ComputeConfig) -> Any:
    """Wraps `function` in `jax.checkpoint` with the config's policy."""
    if compute.remat == "none":
        return function
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    policy = dots if compute.remat == "dots" else jax.checkpoint_policies.nothing_saveable
    # Inside a scan, the loop itself prevents XLA from undoing the recomputation.
    return jax.checkpoint(function, policy=policy, prevent_cse=False)


class MaskedLMHead(nnx.Module):
    """Dense layer, activation and norm, followed by the output embedding, which may be tied to the input embedding."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        dense_key, norm_key, output_key = jax.random.split(key, 3)
        width, stddev = config.hidden_dim, config.initializer_stddev
        self.activation = config.head_activation
        self.dense = Linear(
            (width,), (width,), ("embed", "pooled"), stddev=stddev, key=dense_key, bias=config.biases
        )
        self.norm = make_norm(config, epsilon=config.head_layer_norm_epsilon, key=norm_key)
        rows = config.padded_vocabulary_size
        self.bias = parameter(output_key, (rows,), ("vocabulary",))
        if not config.tie_embeddings:
            self.output = parameter(output_key, (rows, width), ("vocabulary", "embed"), stddev=stddev)

    @jax.named_scope("mlm_head")
    def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the vectors to multiply by the output embedding."""
        return recomputed(lambda inner: self.norm(activate(inner, self.activation)))(self.dense(hidden))


class BertMaskedLM(nnx.Module):
    """Encoder and MLM head; the head runs only at the masked positions."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        encoder_key, head_key = jax.random.split(key)
        self.vocabulary_size = config.vocabulary_size
        self.encoder = BertEncoder(config, key=encoder_key)
        self.head = MaskedLMHead(config, key=head_key)

    def predictions(
        self,
        token_ids: Int[Array, "B L"],
        padding_mask: Bool[Array, "B L"],
        mask_positions: Int[Array, "B K"],
        segment_ids: Int[Array, "B L"] | None = None,
        *,
        document_ids: Int[Array, "B L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        compute: ComputeConfig = _DEFAULT_COMPUTE,
    ) -> Float[Array, "B K D"]:
        """Returns the head's vectors at the masked positions; their products with the output embedding are logits."""
        hidden = self.encoder(
            token_ids,
            padding_mask,
            segment_ids,
            document_ids=document_ids,
            dropout_key=dropout_key,
            compute=compute,
        )
        at_masks = jnp.take_along_axis(hidden, mask_positions[..., None], axis=1)
        return constrain(self.head(at_masks), "batch", "masked", "hidden")

    def output_embedding(self) -> tuple[Float[Array, "rows D"], Float[Array, " rows"]]:
        """Returns the output table, tied or not, and the bias per entry, for the `rows` of the padded vocabulary."""
        table = self.head.output if hasattr(self.head, "output") else self.encoder.embeddings.token
        return table[...], self.head.bias[...]

    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        padding_mask: Bool[Array, "B L"],
        mask_positions: Int[Array, "B K"],
        segment_ids: Int[Array, "B L"] | None = None,
        *,
        dropout_key: Key[Array, ""] | None = None,
        compute: ComputeConfig = _DEFAULT_COMPUTE,
    ) -> Float[Array, "B K V"]:
        """Returns the logits at the masked positions, float32 (float64 if the compute dtype is).

        Training does not use this method: `mlm_jax.model.loss` uses `predictions` and never stores all logits.
        """
        x = self.predictions(
            token_ids, padding_mask, mask_positions, segment_ids, dropout_key=dropout_key, compute=compute
        )
        return vocabulary_logits(x, *self.output_embedding(), self.vocabulary_size)[
            ..., : self.vocabulary_size
        ]


def abstract_masked_lm(config: BertConfig) -> BertMaskedLM:
    """Returns the model with shapes in place of arrays."""
    return nnx.eval_shape(lambda: BertMaskedLM(config, key=jax.random.key(0)))


def vocabulary_logits(
    predictions: Float[Array, "B K D"],
    table: Float[Array, "rows D"],
    bias: Float[Array, " rows"],
    vocabulary_size: int,
) -> Float[Array, "B K rows"]:
    """Returns logits in at least float32; padding rows of the table get the most negative finite number."""
    wide = jnp.promote_types(predictions.dtype, jnp.float32)
    # Gathered over fsdp once for both passes, in the narrower dtype.
    table = constrain(table.astype(predictions.dtype), "vocabulary", "hidden")
    logits = jnp.einsum("bkd,vd->bkv", predictions, table, preferred_element_type=wide)
    logits = constrain(logits + bias[None, None], "batch", "masked", "vocabulary")
    if table.shape[0] == vocabulary_size:
        return logits
    real = jnp.arange(table.shape[0]) < vocabulary_size
    return jnp.where(real[None, None], logits, jnp.finfo(logits.dtype).min)


def count_parameters(config: BertConfig, *, pooler: bool = True, mlm_head: bool = False) -> int:
    """Returns the number of parameters, without allocating any.

    `pooler` and `mlm_head` select the parts to count in addition to the backbone, regardless of `config.pooler`.
    Padding rows of the embedding table are not counted, and a tied output embedding is counted once.
    """
    config = dataclasses.replace(config, pooler=pooler, vocabulary_multiple=1)
    model = BertMaskedLM if mlm_head else BertEncoder
    abstract = nnx.eval_shape(lambda: model(config, key=jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))
