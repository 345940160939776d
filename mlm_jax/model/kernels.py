"""Attention kernels that never store the L × L weights of a head: cuDNN on NVIDIA GPUs, splash on TPUs.

For each kernel, one function returns the reason why it cannot run, or None, and another computes attention;
`mlm_jax.model.attention` chooses the kernel. On a mesh, a kernel gets the complete rows and heads of one device.

B batch, L length, H heads, K head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha_single_device,
)
from jaxtyping import Bool, Float, Int

from mlm_jax.model.blocks import in_blocks, visible

# Tile sizes that fit the memory of a TPU core, largest first; a tile must divide the row.
_SPLASH_TILES = (512, 384, 256, 128)


def nvidia_capability(device: Any) -> float | None:
    """Returns the compute capability of an NVIDIA GPU, such as 8.0; None for another device."""
    capability = str(getattr(device, "compute_capability", ""))
    # On AMD GPUs, it is a name such as gfx90a.
    is_number = device.platform == "gpu" and capability.replace(".", "").isdecimal()
    return float(capability) if is_number else None


def cudnn_obstacle(device: Any, *, length: int, head_dim: int, dtype: str) -> str | None:
    """Returns the reason why cuDNN's flash attention cannot run on `device`, or None.

    The limits are those documented by JAX and cuDNN.
    """
    if (nvidia_capability(device) or 0.0) < 8.0:
        return f"needs an NVIDIA GPU of compute capability 8.0 or later, not {device.device_kind}"
    if dtype != "bfloat16":
        return f"needs compute.dtype = 'bfloat16', not {dtype!r}"
    if head_dim % 8 or head_dim > 128:
        return f"needs a head width that is a multiple of 8 and at most 128, not {head_dim}"
    if length % 2:
        return f"needs an even data.sequence_length, not {length}"
    return None


def cudnn_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    padding_mask: Bool[Array, "B L"],
    document_ids: Int[Array, "B L"] | None,
    reach: int | None = None,
) -> Float[Array, "B L H K"]:
    """Computes attention with cuDNN. Padding must be at the end of a row, because the kernel gets row lengths.

    Documents are passed as an additive bfloat16 mask [B, 1, L, L] shared by all heads, because cuDNN's layout for
    several sequences per row is not public in JAX and needs Hopper. Local layers run in blocks, each with its mask,
    because JAX's public function has no window to the right. In a row that is all padding, the first token counts as
    real.
    """
    if reach is not None:
        return in_blocks(_masked_by_cudnn, query, key, value, padding_mask, document_ids, reach)
    if document_ids is not None:
        return _masked_by_cudnn(query, key, value, visible(padding_mask, document_ids))
    lengths = jnp.maximum(jnp.sum(padding_mask, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _masked_by_cudnn(query: Array, key: Array, value: Array, mask: Bool[Array, "N Q S"]) -> Array:
    return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None], implementation="cudnn")


def splash_obstacle(device: Any, *, length: int, head_dim: int, dtype: str) -> str | None:
    """Returns the reason why splash cannot run on `device`, or None. It supports any dtype and head width."""
    if device.platform != "tpu":
        return f"needs a TPU, not {device.device_kind}"
    if length % _SPLASH_TILES[-1]:
        return f"needs data.sequence_length to be a multiple of {_SPLASH_TILES[-1]}, not {length}"
    return None


def _splash_tile(length: int, reach: int | None) -> int:
    """Returns the largest tile, or in a local layer the smallest of at least two windows, which visits three tiles."""
    fitting = [size for size in _SPLASH_TILES if length % size == 0]
    if reach is None:
        return fitting[0]
    return next((size for size in reversed(fitting) if size >= 4 * reach), fitting[0])


def splash_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    padding_mask: Bool[Array, "B L"],
    document_ids: Int[Array, "B L"] | None,
    reach: int | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "B L H K"]:
    """Computes attention with splash, JAX's Pallas kernel. L must be a multiple of 128.

    Documents and padding are passed as segments, and tiles out of reach are skipped. With `interpret`, the kernel runs
    on any device, slowly.
    """
    length, heads, width = query.shape[1:]
    tile = _splash_tile(length, reach)
    tiles = BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    square = (length, length)
    mask = FullMask(square) if reach is None else LocalMask(square, (reach, reach), offset=0)
    kernel = make_splash_mha_single_device(
        MultiHeadMask([mask] * heads), block_sizes=tiles, interpret=interpret
    )

    own = jnp.zeros_like(padding_mask, jnp.int32) if document_ids is None else document_ids
    # As keys, padding tokens belong to a segment without queries.
    segments = SegmentIds(q=own, kv=jnp.where(padding_mask, own, -1))
    by_head = [jnp.swapaxes(x, 1, 2) for x in (query / width**0.5, key, value)]
    return jnp.swapaxes(jax.vmap(kernel)(*by_head, segments), 1, 2)
