"""Rows that hold several texts, one after the other: positions within a text, and the vector of each text.

`starts` has the column of the first token of each text, in order; that of the first text is 0, and those of missing
texts are L. Padding is at the end of a row and counts as part of its last text.

B rows, L length, S texts of a row, D width.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int


def texts_and_positions(
    starts: Int[Array, "B S"], length: int
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """Returns the number of each token's text in its row, and the token's position in that text."""
    columns = jnp.arange(length)[None]
    texts = jnp.sum(starts[:, :, None] <= columns[:, None], axis=1) - 1
    return texts, columns - jnp.take_along_axis(starts, texts, axis=1)


def first_of_texts(x: Float[Array, "B L *D"], starts: Int[Array, "B S"]) -> Float[Array, "B S *D"]:
    """Returns the vector at the first token of each text; of a missing text, that at the end of the row."""
    places = jnp.expand_dims(starts, tuple(range(2, x.ndim)))
    return jnp.take_along_axis(x, places, axis=1, mode="clip")


def mean_of_texts(
    x: Float[Array, "B L *D"], padding_mask: Bool[Array, "B L"], starts: Int[Array, "B S"]
) -> Float[Array, "B S *D"]:
    """Returns the mean over the real tokens of each text, or 0 if there are none."""
    real = _real_tokens(padding_mask, starts).astype(x.dtype)
    # A product, because sums over selected tokens would read the row once per text.
    sums = jnp.einsum("bsl,bl...->bs...", real, x, precision=jax.lax.Precision.HIGHEST)
    counts = jnp.maximum(jnp.sum(real, axis=2), 1.0)
    return sums / jnp.expand_dims(counts, tuple(range(2, x.ndim)))


def max_of_texts(
    x: Float[Array, "B L *D"], padding_mask: Bool[Array, "B L"], starts: Int[Array, "B S"]
) -> Float[Array, "B S *D"]:
    """Returns the maximum over the real tokens of each text, or the lowest number if there are none."""
    rows, length, slots = *padding_mask.shape, starts.shape[1]
    texts, _ = texts_and_positions(starts, length)
    # Padding of all rows goes to one more text, which is left out.
    numbers = jnp.where(padding_mask, jnp.arange(rows)[:, None] * slots + texts, rows * slots)
    found = jax.ops.segment_max(
        x.reshape(rows * length, *x.shape[2:]), numbers.reshape(-1), num_segments=rows * slots + 1
    )
    lowest = jnp.finfo(x.dtype).min
    return jnp.maximum(found[:-1], lowest).reshape(rows, slots, *x.shape[2:])


def _real_tokens(padding_mask: Bool[Array, "B L"], starts: Int[Array, "B S"]) -> Bool[Array, "B S L"]:
    """Returns True where a real token belongs to the text."""
    texts, _ = texts_and_positions(starts, padding_mask.shape[1])
    slots = jnp.arange(starts.shape[1])
    return padding_mask[:, None] & (texts[:, None] == slots[None, :, None])
