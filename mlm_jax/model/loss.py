"""Masked-LM loss over a large vocabulary, as sums that can be added over chunks, microbatches and devices.

B batch, K masked positions, D hidden_dim, V rows of the output embedding, C chunks.

The loss is a sum, so its gradient can be computed together with it, from the same logits. The backward pass neither
recomputes nor stores logits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int

from mlm_jax.model.bert import vocabulary_logits
from mlm_jax.parallel.sharding import constrain, num_shards

# Maximum size of a chunk's logits on a device. Each chunk reads and writes the gradient of the table, which has about
# this size in BERT.
_CHUNK_BYTES = 128 * 2**20


class LossSums(NamedTuple):
    """Numerators and common denominator of loss and accuracy; scalars."""

    loss: Float[Array, ""]
    """Sum of weighted cross-entropies, in nats."""
    correct: Float[Array, ""]
    """Sum of the weights of positions where the label has the largest logit, and of equal logits the first."""
    weight: Float[Array, ""]
    """Sum of the weights."""


class _Masked(NamedTuple):
    """Vectors of the head and labels at the masked positions."""

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
    chunks: int | None = None,
) -> LossSums:
    """Returns the cross-entropy of `mask_ids` under `predictions · tableᵀ + bias`, summed with `mask_weights`.

    The K positions are processed sequentially in at most `chunks` chunks. With more than one chunk, neither pass has a
    buffer of B × K × V; the only cost is that the matrix products are smaller. By default, chunks are chosen so that a
    device's logits take at most 128 MiB, with at least one position per row. Only `loss` has a gradient, with respect
    to `predictions`, `table` and `bias`; its products are in the dtype of `predictions`.

    Raises:
        ValueError: the current mesh does not divide B.
    """
    rows, positions = mask_ids.shape
    if rows % num_shards("batch"):
        raise ValueError(
            f"predictions: {rows} rows: must be a multiple of {num_shards('batch')}, into which the mesh splits a batch"
        )
    size = _positions_of_chunk(rows, table.shape[0]) if chunks is None else math.ceil(positions / chunks)
    # All chunks have the same size except the last, and none is empty.
    chunks = max(1, math.ceil(positions / max(1, size)))
    return _sums(vocabulary_size, chunks, table, bias, _Masked(predictions, mask_ids, mask_weights))


def _positions_of_chunk(rows: int, vocabulary: int) -> int:
    """Returns the number of positions per row whose float32 logits fit a chunk; 0 if a single position does not fit."""
    of_one = 4 * rows * vocabulary / num_shards("batch", "vocabulary")
    return int(_CHUNK_BYTES / max(1.0, of_one))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(vocabulary_size: int, chunks: int, table: Array, bias: Array, masked: _Masked) -> LossSums:
    rows = _gathered(table, masked)

    @jax.named_scope("loss")
    def of_chunk(chunk: _Masked) -> tuple[LossSums, None]:
        return _cross_entropy(vocabulary_size, rows, bias, chunk)[0], None

    return _add_chunks(of_chunk, chunks, masked)[0]


def _sums_and_gradients(
    vocabulary_size: int, chunks: int, table: Array, bias: Array, masked: _Masked
) -> tuple[LossSums, tuple[Array, Array, Array]]:
    rows = _gathered(table, masked)
    # Gradients are summed over chunks within each device's rows, and over devices only once, after the last chunk:
    # first within fsdp, so that each shard of the table is then added only to its replicas.
    replicas, shards = num_shards("replica"), num_shards("shard")

    def by_device(x: Array, last: str) -> Array:
        """Reshapes [B, K, last] to [replicas, shards, B / replicas / shards, K, last]."""
        x = x.reshape(replicas, shards, -1, *x.shape[1:])
        return constrain(x, "replica", "shard", "row", "masked", last)

    @jax.named_scope("loss")
    def of_chunk(chunk: _Masked) -> tuple[tuple[LossSums, Array, Array], Array]:
        sums, logit_gradients = _cross_entropy(vocabulary_size, rows, bias, chunk)
        narrow = logit_gradients.astype(chunk.predictions.dtype)
        of_predictions = jnp.einsum("bkv,vd->bkd", narrow, rows)
        # Computed transposed, and transposed back below; otherwise XLA's CPU backend would transpose the logits.
        of_table = jnp.einsum(
            "rsbkd,rsbkv->rsdv", by_device(chunk.predictions, "hidden"), by_device(narrow, "vocabulary")
        ).astype(logit_gradients.dtype)
        # A sum written as a product, which takes XLA's CPU backend a seventh of the time.
        by_rows = by_device(logit_gradients, "vocabulary")
        ones = jnp.ones(by_rows.shape[:-1], by_rows.dtype)
        of_bias = jnp.einsum("rsbk,rsbkv->rsv", ones, by_rows, precision=jax.lax.Precision.HIGHEST)
        return (
            sums,
            constrain(of_table, "replica", "shard", "hidden", "vocabulary"),
            constrain(of_bias, "replica", "shard", "vocabulary"),
        ), constrain(of_predictions, "batch", "masked", "hidden")

    (sums, of_table, of_bias), of_predictions = _add_chunks(of_chunk, chunks, masked)
    of_table = jnp.sum(constrain(jnp.sum(of_table, axis=1), "replica", "embed", "vocabulary"), axis=0)
    of_bias = jnp.sum(of_bias, axis=(0, 1))
    return sums, (of_table.T.astype(table.dtype), of_bias.astype(bias.dtype), of_predictions)


def _scale_gradients(
    vocabulary_size: int, chunks: int, gradients: tuple[Array, Array, Array], cotangent: LossSums
) -> tuple[Array, Array, _Masked]:
    of_table, of_bias, of_predictions = (
        (cotangent.loss * gradient).astype(gradient.dtype) for gradient in gradients
    )
    return of_table, of_bias, _Masked(of_predictions, None, None)  # type: ignore[arg-type]


_sums.defvjp(_sums_and_gradients, _scale_gradients)


def _gathered(table: Array, masked: _Masked) -> Array:
    """Returns the table gathered over fsdp, once for all chunks, in the narrower dtype."""
    return constrain(table.astype(masked.predictions.dtype), "vocabulary", "hidden")


def _cross_entropy(
    vocabulary_size: int, table: Array, bias: Array, masked: _Masked
) -> tuple[LossSums, Float[Array, "B K V"]]:
    """Returns the sums, and the gradient of the summed loss with respect to the logits."""
    logits = vocabulary_logits(masked.predictions, table, bias, vocabulary_size)
    largest = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - largest[..., None])
    partition = jnp.sum(exponentials, axis=-1)
    at_label = jnp.take_along_axis(logits, masked.ids[..., None], axis=-1)[..., 0]
    weights = masked.weights.astype(logits.dtype)
    ids = jnp.arange(logits.shape[-1])[None, None]
    # As an argmax decides, which takes nine times as long, because it does not know the largest logit.
    is_beaten = jnp.any((ids < masked.ids[..., None]) & (logits >= largest[..., None]), axis=-1)
    sums = LossSums(
        # In this order: a sum with a huge logit would be that logit, and the loss 0.
        loss=jnp.sum(weights * (largest - at_label + jnp.log(partition))),
        correct=jnp.sum(weights * ((at_label >= largest) & ~is_beaten)),
        weight=jnp.sum(weights),
    )
    is_label = ids == masked.ids[..., None]
    gradients = exponentials * (weights / partition)[..., None] - jnp.where(is_label, weights[..., None], 0)
    return sums, constrain(gradients, "batch", "masked", "vocabulary")


def _add_chunks(
    of_chunk: Callable[[_Masked], tuple[Any, Any]], chunks: int, masked: _Masked
) -> tuple[Any, Any]:
    """Applies `of_chunk` to each chunk. It returns a tree to sum and an array [B, K of the chunk, …] or None."""
    if chunks == 1:
        return of_chunk(masked)
    positions = masked.ids.shape[1]
    spare = -positions % chunks

    def split(x: Array) -> Array:
        """Reshapes [B, K, …] to [C, B, K / C, …], padded with zeros (and so zero weights) if C does not divide K."""
        x = jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        """Inverts `split`."""
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
