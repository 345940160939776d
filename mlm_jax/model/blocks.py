"""Local attention in blocks: a block of queries meets only the keys within reach, so the cost is linear in the length.

B batch, L length, H heads, K head width; N blocks of all rows, Q queries and S keys of a block.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

MaskedAttention = Callable[[Array, Array, Array, Bool[Array, "N Q S"]], Array]


def visible(
    padding_mask: Bool[Array, "B L"], document_ids: Int[Array, "B L"] | None, reach: int | None = None
) -> Bool[Array, "#B #L L"]:
    """Returns True where the key (last axis) is a real token of the query's document and within reach of the query."""
    mask = padding_mask[:, None, :]
    if document_ids is not None:
        mask = mask & (document_ids[:, :, None] == document_ids[:, None, :])
    if reach is not None:
        position = jnp.arange(padding_mask.shape[1])
        mask = mask & (jnp.abs(position[:, None] - position[None]) <= reach)[None]
    return mask


def in_blocks(
    attention: MaskedAttention,
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    padding_mask: Bool[Array, "B L"],
    document_ids: Int[Array, "B L"] | None,
    reach: int,
) -> Float[Array, "B L H K"]:
    """Returns attention within `reach` positions, computed by `attention` on blocks of 2 · reach queries.

    A block's keys are its own positions and `reach` more on either side (as in Longformer, Beltagy et al. 2020, and
    exact). Rows that are hardly longer than that are one block.
    """
    rows, length = padding_mask.shape
    size = 2 * reach
    if length <= 2 * size:
        return attention(query, key, value, visible(padding_mask, document_ids, reach))
    count = -(-length // size)

    def of_queries(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2))
        return padded.reshape(rows * count, size, *x.shape[2:])

    def of_keys(x: Array) -> Array:
        after = reach + count * size - length
        padded = jnp.pad(x, [(0, 0), (reach, after)] + [(0, 0)] * (x.ndim - 2))
        halves = padded.reshape(rows, 2 * count + 2, reach, *x.shape[2:])
        parts = [halves[:, part : part + 2 * count : 2] for part in range(4)]
        return jnp.concatenate(parts, axis=2).reshape(rows * count, 4 * reach, *x.shape[2:])

    mask = of_keys(padding_mask)[:, None, :]
    if document_ids is not None:
        mask = mask & (of_queries(document_ids)[:, :, None] == of_keys(document_ids)[:, None, :])
    distance = jnp.arange(4 * reach)[None] - reach - jnp.arange(size)[:, None]
    mask = mask & (jnp.abs(distance) <= reach)[None]
    blocks = attention(of_queries(query), of_keys(key), of_keys(value), mask)
    return blocks.reshape(rows, count * size, *query.shape[2:])[:, :length]
