"""Positions in attention: rotary embeddings (Su et al. 2021), biases by distance, and the windows of local layers.

B batch, L length, K head width, H heads.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from mlm_jax.config.model import BertConfig


class LayerPositions(NamedTuple):
    """Position information of a layer's attention."""

    rotation: Float[Array, "2 #B L half"] | None = None
    """Cosines and sines that rotate queries and keys, K / 2 of each per position."""
    reach: int | None = None
    """Number of positions on each side to which a query attends; None for all."""
    bias: Float[Array, "H L L"] | None = None
    """Summand of the scores of a query and a key, by their distance."""
    is_unnormalized: Bool[Array, ""] | None = None
    """True in a layer whose attention has no norm before it; None if there is no such layer."""


def positions_of_layers(
    config: BertConfig,
    position_ids: Int[Array, "#B L"],
    dtype: str,
    relative_bias: Float[Array, "buckets H"] | None = None,
) -> Callable[[int, Int[Array, ""]], LayerPositions]:
    """Returns a function from a layer's place in its period and its index, which may be traced, to its positions.

    The place tells global from local layers. `position_ids` are those of rotations: windows and biases depend only on
    distances in the row. Rotations and biases are in float32, or in `dtype` if that is wider. `relative_bias` has the
    learned biases of the model's ranges of distances.
    """
    window, local_base = config.local_attention_window, config.local_rotary_base
    rotation = local_rotation = None
    if config.positions == "rotary":
        rotation = rotary_table(position_ids, config.head_dim, config.rotary_base, dtype)
    if local_base is not None:
        local_rotation = rotary_table(position_ids, config.head_dim, local_base, dtype)

    bias = None
    if relative_bias is not None:
        buckets = distance_buckets(position_ids.shape[1], config.relative_position_buckets)
        bias = jnp.moveaxis(relative_bias.astype(jnp.promote_types(dtype, jnp.float32))[buckets], -1, 0)

    def of_layer(place: int, index: Int[Array, ""]) -> LayerPositions:
        first = None if config.first_attention_norm else index == 0
        if window is None or place == 0:
            return LayerPositions(rotation, None, bias, first)
        return LayerPositions(
            rotation if local_rotation is None else local_rotation, window // 2, bias, first
        )

    return of_layer


def rotary_table(
    position_ids: Int[Array, "#B L"], head_dim: int, base: float, dtype: str
) -> Float[Array, "2 #B L half"]:
    """Returns cosine and sine of position · base^(-2i/K) for i < K / 2, in float32, or in `dtype` if that is wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    frequencies = jnp.asarray(base ** -(np.arange(0, head_dim, 2) / head_dim), wide)
    angles = position_ids.astype(wide)[..., None] * frequencies[None, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


_DISTANT = 128


def distance_buckets(length: int, num_buckets: int) -> np.ndarray:
    """Returns the range of distances of each query and key, int32 [L, L] (Raffel et al. 2019, T5, section 2.1).

    Half of the ranges are of keys after the query. Of either half, the first half has one distance each; the others
    widen logarithmically up to 128 tokens, and the last has all beyond.
    """
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    half = num_buckets // 2
    exact = half // 2
    away = np.abs(distance)
    # In float32, as other implementations round at the edges of the ranges.
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(_DISTANT / exact)
    )
    wide = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int32), half - 1)
    return np.where(distance < 0, half, 0).astype(np.int32) + np.where(away < exact, away, wide).astype(
        np.int32
    )


def rotate(x: Float[Array, "B L H K"], rotation: Float[Array, "2 #B L half"]) -> Float[Array, "B L H K"]:
    """Rotates each pair of dimensions i and i + K / 2 by its angle. This is Hugging Face's pairing, not the paper's.

    The product of a rotated query and a rotated key depends only on the distance between their positions.
    """
    cosine, sine = rotation[:, :, :, None]
    first, second = jnp.split(x.astype(rotation.dtype), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x.dtype)
