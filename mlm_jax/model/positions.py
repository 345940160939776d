"""Positions in attention: rotary embeddings (Su et al. 2021) and the windows of local layers.

L length, K head width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from mlm_jax.config.model import BertConfig


class LayerPositions(NamedTuple):
    """Position information of a layer's attention. Positions count from the start of the row."""

    rotation: Float[Array, "2 L half"] | None = None
    """Cosines and sines that rotate queries and keys, K / 2 of each per position."""
    reach: Int[Array, ""] | None = None
    """Number of positions on each side to which a query attends; None for all."""


def positions_of_layers(
    config: BertConfig, length: int, dtype: str
) -> Callable[[Int[Array, ""]], LayerPositions]:
    """Returns a function from a layer's index to its positions, for rows of `length` tokens.

    One loop covers local and global layers, so the kind of a layer is a traced value. Rotations are in float32, or in
    `dtype` if that is wider.
    """
    window, local_base = config.local_attention_window, config.local_rotary_base
    rotation = local_rotation = None
    if config.positions == "rotary":
        rotation = rotary_table(length, config.head_dim, config.rotary_base, dtype)
    if local_base is not None:
        local_rotation = rotary_table(length, config.head_dim, local_base, dtype)

    def of_layer(index: Int[Array, ""]) -> LayerPositions:
        if window is None:
            return LayerPositions(rotation)
        is_global = index % config.global_attention_every == 0
        reach = jnp.where(is_global, length, window // 2)
        if rotation is None or local_rotation is None:
            return LayerPositions(rotation, reach)
        return LayerPositions(jnp.where(is_global, rotation, local_rotation), reach)

    return of_layer


def rotary_table(length: int, head_dim: int, base: float, dtype: str) -> Float[Array, "2 L half"]:
    """Returns cosine and sine of position · base^(-2i/K) for i < K / 2, in float32, or in `dtype` if that is wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    frequencies = jnp.asarray(base ** -(np.arange(0, head_dim, 2) / head_dim), wide)
    angles = jnp.arange(length, dtype=wide)[:, None] * frequencies[None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def rotate(x: Float[Array, "B L H K"], rotation: Float[Array, "2 L half"]) -> Float[Array, "B L H K"]:
    """Rotates each pair of dimensions i and i + K / 2 by its angle. This is Hugging Face's pairing, not the paper's.

    The product of a rotated query and a rotated key depends only on the distance between their positions.
    """
    cosine, sine = rotation[:, None, :, None]
    first, second = jnp.split(x.astype(rotation.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x.dtype)
