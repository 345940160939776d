"""The masked-LM loss over a large vocabulary, as sums that may be added over chunks, microbatches and devices.

B batch, K masked positions, D hidden_dim, C chunks.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int

from mlm_jax.model.bert import vocabulary_logits


class MaskedLMSums(NamedTuple):
    """Numerators and the denominator of loss and accuracy, each a scalar."""

    loss: Float[Array, ""]
    """Sum of weighted cross-entropies, in nats."""
    correct: Float[Array, ""]
    """Sum of the weights of positions whose label no other entry outscored."""
    weight: Float[Array, ""]
    """Sum of the weights."""


def masked_lm_sums(
    predictions: Float[Array, "B K D"],
    table: Float[Array, "rows D"],
    bias: Float[Array, " rows"],
    mask_ids: Int[Array, "B K"],
    mask_weights: Float32[Array, "B K"],
    *,
    vocabulary_size: int,
    chunks: int = 1,
) -> MaskedLMSums:
    """Cross-entropy of `mask_ids` under the logits `predictions · tableᵀ + bias`, summed with `mask_weights`.

    With `chunks` above 1 the K positions go through the table in that many pieces, and the backward pass makes
    each piece's logits again instead of keeping them: no buffer of B × K × vocabulary ever exists, for one more
    product with the table.
    """
    sums = partial(_sums, table, bias, vocabulary_size)
    if chunks == 1:
        return sums(predictions, mask_ids, mask_weights)
    spare = -predictions.shape[1] % chunks

    def split(x: Array) -> Array:
        """[B, K, …] to [C, B, K / C, …], with zeros (so zero weights) where C does not divide K."""
        x = jnp.pad(x, [(0, 0), (0, spare)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    @partial(jax.checkpoint, prevent_cse=False)
    def add_chunk(total: MaskedLMSums, chunk: tuple[Array, Array, Array]) -> tuple[MaskedLMSums, None]:
        return jax.tree.map(jnp.add, total, sums(*chunk)), None

    zero = jnp.zeros((), jnp.promote_types(predictions.dtype, jnp.float32))
    start = MaskedLMSums(zero, zero, zero)
    return jax.lax.scan(add_chunk, start, (split(predictions), split(mask_ids), split(mask_weights)))[0]


@jax.named_scope("loss")
def _sums(
    table: Array, bias: Array, vocabulary_size: int, predictions: Array, mask_ids: Array, mask_weights: Array
) -> MaskedLMSums:
    logits = vocabulary_logits(predictions, table, bias, vocabulary_size)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    log_partition = largest + jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1))
    at_label = jnp.take_along_axis(logits, mask_ids[..., None], axis=-1)[..., 0]
    weights = mask_weights.astype(logits.dtype)
    # The largest logit is at hand, so comparing with it spares the argmax a second pass over the vocabulary.
    correct = jax.lax.stop_gradient(at_label) >= largest
    return MaskedLMSums(
        loss=jnp.sum(weights * (log_partition - at_label)),
        correct=jnp.sum(weights * correct),
        weight=jnp.sum(weights),
    )
