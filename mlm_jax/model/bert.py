"""BERT (Devlin et al. 2018) and later variants in Flax NNX: embeddings, layers, encoder, pooler, tied MLM head.

B batch, L length, D hidden_dim, K masked positions, V vocabulary.

Layers are stacked: each weight is one array with a leading axis `layers`, and a scan applies the layers, so that
compile time does not grow with depth. Where global and local layers alternate, the scan goes over periods, whose layers
are static, so that kernels know their window. Dropout keys are arguments; no module has mutable state.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import ComputeConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.model.embeddings import Embeddings
from mlm_jax.model.encoder_layer import BertLayer
from mlm_jax.model.layer_loop import apply_in_periods
from mlm_jax.model.layers import Linear, activate, make_norm, parameter, recomputed
from mlm_jax.model.pooler import Pooler
from mlm_jax.model.positions import positions_of_layers
from mlm_jax.parallel.sharding import constrain

_DEFAULT_COMPUTE = ComputeConfig()


class BertEncoder(nnx.Module):
    """Backbone: embeddings, layers, a final norm if the layers are pre-normalized, and an optional pooler."""

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        embeddings_key, layers_key, pooler_key, norm_key = jax.random.split(key, 4)
        self.config = config
        self.embeddings = Embeddings(config, key=embeddings_key)
        make_layers = nnx.vmap(
            BertLayer, in_axes=(None, 0), transform_metadata={nnx.PARTITION_NAME: "layers"}
        )
        count = 1 if config.shared_layers else config.num_layers
        self.layers = make_layers(config, jax.random.split(layers_key, count))
        if config.relative_position_buckets:
            shape = (config.relative_position_buckets, config.num_heads)
            bias_key = jax.random.fold_in(key, 0)
            self.relative_bias = parameter(
                bias_key, shape, ("position", "heads"), stddev=config.initializer_stddev
            )
        if config.norm_placement == "pre":
            self.final_norm = make_norm(config, epsilon=config.layer_norm_epsilon, key=norm_key)
        if config.pooler:
            self.pooler = Pooler(config, key=pooler_key)

    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        padding_mask: Bool[Array, "B L"],
        segment_ids: Int[Array, "B L"] | None = None,
        *,
        document_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        compute: ComputeConfig = _DEFAULT_COMPUTE,
        depth: int | tuple[int, ...] | None = None,
    ) -> Float[Array, "B L D"] | Float[Array, "depths B L D"]:
        """Returns the last hidden states, in `compute.dtype`, or those after `depth` layers or each of several depths.

        An automatic dtype is float32 here, and an automatic unrolling a loop; programs choose before they call.
        `padding_mask` is True at real tokens. `segment_ids` default to 0. With `document_ids`, tokens attend only
        within their document. `position_ids` default to the columns of the row; windows and relative biases always
        go by columns. Without a `dropout_key` there is no dropout. Between pre-normalized layers, hidden states are the
        residual stream; after the last layer, they are normalized.

        Raises:
            InputError: `segment_ids` are given and the model has no segment embeddings.
        """
        depth = self.config.num_layers if depth is None else depth
        deepest = max(depth) if isinstance(depth, tuple) else depth
        dtype = "float32" if compute.dtype == "auto" else compute.dtype
        embeddings_key, layers_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        x = self.embeddings(
            token_ids, padding_mask, segment_ids, document_ids, embeddings_key, dtype, position_ids
        )
        graph, stacked = nnx.split(self.layers)
        shared = jax.tree.map(lambda weights: weights[0], stacked) if self.config.shared_layers else None
        inputs = (stacked if shared is None else None, jnp.arange(self.config.num_layers))
        biases = self.relative_bias[...] if hasattr(self, "relative_bias") else None
        if position_ids is None:
            position_ids = jnp.arange(token_ids.shape[1])[None]
        positions = positions_of_layers(self.config, position_ids, dtype, biases)

        def apply_layer(place: int, x: Array, inputs: tuple[Any | None, Array]) -> Array:
            weights, index = inputs
            key = None if layers_key is None else jax.random.fold_in(layers_key, index)
            with jax.named_scope("layer"):
                layer = nnx.merge(graph, weights if shared is None else shared)
                x = layer(x, padding_mask, key, document_ids, compute.attention, positions(place, index))
            return constrain(x, "batch", "length", "hidden")

        embedded = constrain(x, "batch", "length", "hidden")
        x, states = apply_in_periods(
            apply_layer,
            embedded,
            inputs,
            deepest,
            self.config.layers_per_period,
            compute,
            keep=isinstance(depth, tuple),
        )
        if isinstance(depth, tuple):
            return jnp.stack([self._output(states[d - 1] if d else embedded, d) for d in depth])
        return self._output(x, depth)

    def _output(self, x: Float[Array, "B L D"], depth: int) -> Float[Array, "B L D"]:
        is_last = depth == self.config.num_layers
        return self.final_norm(x) if is_last and hasattr(self, "final_norm") else x


class MaskedLMHead(nnx.Module):
    """Dense layer, activation and norm, followed by the output embedding, which may be tied to the input embedding.

    The dense layer maps to the width of the embeddings. In a model without `head_transform`, only the output is left.
    """

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        dense_key, norm_key, output_key = jax.random.split(key, 3)
        hidden, width, stddev = config.hidden_dim, config.embedding_width, config.initializer_stddev
        rows = config.padded_vocabulary_size
        if config.head_transform:
            self.activation = config.head_activation
            self.dense = Linear(
                (hidden,), (width,), ("embed", "pooled"), stddev=stddev, key=dense_key, bias=config.biases
            )
            self.norm = make_norm(config, epsilon=config.head_layer_norm_epsilon, key=norm_key, width=width)
            self.bias = parameter(output_key, (rows,), ("vocabulary",))
        if not config.tie_embeddings:
            self.output = parameter(output_key, (rows, width), ("vocabulary", "embed"), stddev=stddev)

    @jax.named_scope("mlm_head")
    def __call__(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch width"]:
        """Returns the vectors to multiply by the output embedding, which are as wide as the embeddings."""
        if not hasattr(self, "dense"):
            return hidden
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
    ) -> Float[Array, "B K width"]:
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

    def output_embedding(self) -> tuple[Float[Array, "rows width"], Float[Array, " rows"]]:
        """Returns the output table, tied or not, and the bias per entry, for the `rows` of the padded vocabulary."""
        table = (self.head.output if hasattr(self.head, "output") else self.encoder.embeddings.token)[...]
        bias = self.head.bias[...] if hasattr(self.head, "bias") else jnp.zeros(table.shape[0], jnp.float32)
        return table, bias

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
