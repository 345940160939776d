"""The masked-LM loss over a large vocabulary, as sums that may be added over chunks, microbatches and devices.

B batch, K masked positions, D hidden_dim, V rows of the output embedding, C chunks.

The loss is a sum, so its gradient is known as soon as its logits are: it is computed beside them, and the backward
pass makes no logits again, nor were they kept for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int

from mlm_jax.model.bert import vocabulary_logits
from mlm_jax.sharding import constrain


class MaskedLMSums(NamedTuple):
    """Numerators and the denominator of loss and accuracy, each a scalar."""

    loss: Float[Array, ""]
    """Sum of weighted cross-entropies, in nats."""
    correct: Float[Array, ""]
    """Sum of the weights of positions whose label no other entry outscored."""
    weight: Float[Array, ""]
    """Sum of the weights."""


class _Masked(NamedTuple):
    """What the head says of masked positions, and what was there."""

    predictions: Array
    ids: Array
    weights: Array


def masked_lm_sums(
    predictions: Float[Array, "B K D"],
    table: Float[Array, "V D"],
    bias: Float[Array, " V"],
    mask_ids: Int[Array, "B K"],
    mask_weights: Float32[Array, "B K"],
    *,
    vocabulary_size: int,
    chunks: int = 1,
) -> MaskedLMSums:
    """Cross-entropy of `mask_ids` under the logits `predictions · tableᵀ + bias`, summed with `mask_weights`.

    With `chunks` above 1 the K positions go through the table in that many pieces, one after the other: no buffer of
    B × K × V ever exists, in neither pass, at no cost but that of smaller products. Only `loss` has a gradient, and
    it reaches `predictions`, `table` and `bias`; the products of the gradient are in the dtype of `predictions`.
    """
    return _sums(vocabulary_size, chunks, table, bias, _Masked(predictions, mask_ids, mask_weights))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(vocabulary_size: int, chunks: int, table: Array, bias: Array, masked: _Masked) -> MaskedLMSums:
    @jax.named_scope("loss")
    def of_chunk(chunk: _Masked) -> tuple[MaskedLMSums, None]:
        return _cross_entropy(vocabulary_size, table, bias, chunk)[0], None

    return _add_chunks(of_chunk, chunks, masked)[0]


def _sums_and_gradients(
    vocabulary_size: int, chunks: int, table: Array, bias: Array, masked: _Masked
) -> tuple[MaskedLMSums, tuple[Array, Array, Array]]:
    @jax.named_scope("loss")
    def of_chunk(chunk: _Masked) -> tuple[tuple[MaskedLMSums, Array, Array], Array]:
        sums, logit_gradients = _cross_entropy(vocabulary_size, table, bias, chunk)
        narrow = logit_gradients.astype(chunk.predictions.dtype)
        rows = constrain(table.astype(narrow.dtype), "vocabulary", "hidden")
        of_predictions = jnp.einsum("bkv,vd->bkd", narrow, rows)
        # Transposed here and back below: the other way round XLA's CPU backend transposes the logits instead.
        of_table = jnp.einsum("bkd,bkv->dv", chunk.predictions, narrow).astype(logit_gradients.dtype)
        of_bias = jnp.sum(logit_gradients, axis=(0, 1))
        return (sums, of_table, of_bias), constrain(of_predictions, "batch", "masked", "hidden")

    (sums, of_table, of_bias), of_predictions = _add_chunks(of_chunk, chunks, masked)
    return sums, (of_table.T.astype(table.dtype), of_bias.astype(bias.dtype), of_predictions)


def _scale_gradients(
    vocabulary_size: int, chunks: int, gradients: tuple[Array, Array, Array], cotangent: MaskedLMSums
) -> tuple[Array, Array, _Masked]:
    of_table, of_bias, of_predictions = (
        (cotangent.loss * gradient).astype(gradient.dtype) for gradient in gradients
    )
    return of_table, of_bias, _Masked(of_predictions, None, None)  # type: ignore[arg-type]


_sums.defvjp(_sums_and_gradients, _scale_gradients)


def _cross_entropy(
    vocabulary_size: int, table: Array, bias: Array, masked: _Masked
) -> tuple[MaskedLMSums, Float[Array, "B K V"]]:
    """The sums, and the gradient of the summed loss with respect to the logits."""
    logits = vocabulary_logits(masked.predictions, table, bias, vocabulary_size)
    largest = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - largest[..., None])
    partition = jnp.sum(exponentials, axis=-1)
    at_label = jnp.take_along_axis(logits, masked.ids[..., None], axis=-1)[..., 0]
    weights = masked.weights.astype(logits.dtype)
    sums = MaskedLMSums(
        loss=jnp.sum(weights * (largest + jnp.log(partition) - at_label)),
        # The largest logit is at hand, so comparing with it spares the argmax a second pass over the vocabulary.
        correct=jnp.sum(weights * (at_label >= largest)),
        weight=jnp.sum(weights),
    )
    is_label = jnp.arange(logits.shape[-1])[None, None] == masked.ids[..., None]
    gradients = exponentials * (weights / partition)[..., None] - jnp.where(is_label, weights[..., None], 0)
    return sums, constrain(gradients, "batch", "masked", "vocabulary")


def _add_chunks(
    of_chunk: Callable[[_Masked], tuple[Any, Any]], chunks: int, masked: _Masked
) -> tuple[Any, Any]:
    """`of_chunk` gives what is to be added over the chunks, and an array [B, K of the chunk, …] or None."""
    if chunks == 1:
        return of_chunk(masked)
    positions = masked.ids.shape[1]
    spare = -positions % chunks

    def split(x: Array) -> Array:
        """[B, K, …] to [C, B, K / C, …], with zeros (so zero weights) where C does not divide K."""
        x = jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        """The inverse of `split`."""
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :positions]

    def add(total: Any, chunk: _Masked) -> tuple[Any, Any]:
        sums, of_positions = of_chunk(chunk)
        return jax.tree.map(jnp.add, total, sums), of_positions

    pieces = jax.tree.map(split, masked)
    shapes, _ = jax.eval_shape(of_chunk, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    total, of_positions = jax.lax.scan(add, zeros, pieces)
    return total, jax.tree.map(join, of_positions)
