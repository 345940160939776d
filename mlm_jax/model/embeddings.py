"""Embeddings of tokens, positions and segments.

B batch, L length, D hidden_dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Key

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.model.layers import Linear, dropout, make_norm, parameter
from mlm_jax.parallel.sharding import constrain


class Embeddings(nnx.Module):
    """Normalized sum of token embeddings and, if the model has them, position and segment embeddings.

    If the embeddings are narrower than the hidden states, a linear map follows.
    """

    def __init__(self, config: BertConfig, *, key: Key[Array, ""]) -> None:
        token_key, position_key, segment_key, norm_key = jax.random.split(key, 4)
        width, stddev = config.embedding_width, config.initializer_stddev
        self.mask_dropout_id = config.mask_dropout_id
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
            self.norm = make_norm(config, epsilon=config.layer_norm_epsilon, key=norm_key, width=width)
        if config.embedding_dim is not None:
            projection_key = jax.random.fold_in(key, 0)
            hidden = (config.hidden_dim,)
            self.projection = Linear((width,), hidden, ("embed", "pooled"), stddev=stddev, key=projection_key)

    @jax.named_scope("embeddings")
    def __call__(
        self,
        token_ids: Int[Array, "B L"],
        padding_mask: Bool[Array, "B L"],
        segment_ids: Int[Array, "B L"] | None,
        document_ids: Int[Array, "B L"] | None,
        dropout_key: Key[Array, ""] | None,
        dtype: str,
        position_ids: Int[Array, "B L"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Returns the sum of the embeddings, normalized in `dtype`.

        `segment_ids` default to 0, and `position_ids` to the columns.

        `padding_mask` and `document_ids` matter only to a model that drops the embedding of the mask token.

        Raises:
            InputError: `segment_ids` are given and the model has no segment embeddings.
        """
        # Each table is gathered over fsdp before the lookup. Otherwise the partitioner looks up slices of the width
        # and then reshards whole activations.
        token = constrain(self.token[...], "vocabulary", "hidden")
        x = constrain(token[token_ids], "batch", "length", "hidden")
        if self.mask_dropout_id is not None:
            scale = mask_dropout_scale(token_ids == self.mask_dropout_id, padding_mask, document_ids)
            x = x * scale[..., None].astype(x.dtype)
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
            if position_ids is None:
                x = x + position[None, first : first + token_ids.shape[1]]
            else:
                x = x + constrain(position[first + position_ids], "batch", "length", "hidden")
        x = x.astype(dtype)
        if hasattr(self, "norm"):
            x = self.norm(x)
        x = dropout(x, self.dropout_rate, dropout_key)
        return self.projection(x) if hasattr(self, "projection") else x


# Share of tokens that are masks in the training of ESM: 80 % of 15 %.
_TRAINED_MASKS = 0.15 * 0.8


def mask_dropout_scale(
    is_mask: Bool[Array, "B L"], padding_mask: Bool[Array, "B L"], document_ids: Int[Array, "B L"] | None
) -> Float32[Array, "B L"]:
    """Returns 0 at masks, and (1 - 0.12) / (1 - share of masks) elsewhere, per row or, if packed, per document."""
    masks, tokens = (is_mask & padding_mask).astype(jnp.float32), padding_mask.astype(jnp.float32)
    if document_ids is None:
        share = jnp.sum(masks, axis=1, keepdims=True) / jnp.maximum(
            1.0, jnp.sum(tokens, axis=1, keepdims=True)
        )
    else:
        same = (document_ids[:, :, None] == document_ids[:, None, :]).astype(jnp.float32)
        counts = jnp.einsum("bls,bsn->bln", same, jnp.stack([masks, tokens], axis=-1))
        share = counts[..., 0] / jnp.maximum(1.0, counts[..., 1])
    # Of a text of masks alone, no embedding is left to scale.
    kept = jnp.maximum(1.0 - share, jnp.finfo(jnp.float32).eps)
    return jnp.where(is_mask, 0.0, (1.0 - _TRAINED_MASKS) / kept)
