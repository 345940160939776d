"""Scaled dot-product attention: one function, the implementations behind it, and the one place that chooses.

B batch, L length, H heads, K head width.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import Attention, ComputeConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.model.kernels import (
    cudnn_attention,
    cudnn_obstacle,
    splash_attention,
    splash_obstacle,
    within_reach,
)
from mlm_jax.model.layers import dropout
from mlm_jax.parallel.sharding import partition_spec

# From here on "auto" is a kernel: in shorter rows the weights are small beside the other activations.
_KERNEL_LENGTH = 512

# With the platform that each is for, as a device names it.
_KERNELS: Mapping[str, Callable[..., Array]] = {"cudnn": cudnn_attention, "splash": splash_attention}
_OBSTACLES: Mapping[str, Callable[..., str | None]] = {"cudnn": cudnn_obstacle, "splash": splash_obstacle}
_OF_PLATFORM: Mapping[str, Literal["cudnn", "splash"]] = {"gpu": "cudnn", "tpu": "splash"}
_NO_DROPOUT = "needs model.attention_dropout_rate = 0, because no kernel drops weights, not"


class AttentionChoice(NamedTuple):
    """What computes attention, and where that is not the kernel of the platform, why not."""

    implementation: Literal["xla", "cudnn", "splash"]
    reason: str = ""


def choose_attention(compute: ComputeConfig, model: BertConfig, length: int, device: Any) -> AttentionChoice:
    """What computes the attention of a run, training and evaluation, in rows of `length` tokens on `device`.

    `device` is one of those that the program is compiled for, there or not. Kernels have no dropout on the weights
    (cuDNN has, but JAX's public function leaves it out, and its seed could not change from step to step), so with
    `attention_dropout_rate` above 0 it is XLA. Of local layers splash knows nothing; cuDNN is told by a mask.

    Raises:
        InputError: the config names a kernel that cannot do what is asked, or not on that device.
    """
    if compute.attention == "xla":
        return AttentionChoice("xla")
    if compute.attention != "auto":
        obstacle = _obstacle(compute.attention, compute, model, length, device)
        if obstacle:
            raise InputError(f"compute.attention = {compute.attention!r}: {obstacle}; 'auto' takes what can")
        return AttentionChoice(compute.attention)
    kernel = _OF_PLATFORM.get(device.platform)
    if kernel is None or length < _KERNEL_LENGTH:
        return AttentionChoice("xla")
    obstacle = _obstacle(kernel, compute, model, length, device)
    return AttentionChoice("xla", f"{kernel} {obstacle}") if obstacle else AttentionChoice(kernel)


def _obstacle(
    kernel: Literal["cudnn", "splash"], compute: ComputeConfig, model: BertConfig, length: int, device: Any
) -> str | None:
    obstacle = _OBSTACLES[kernel](
        device,
        length=length,
        head_dim=model.head_dim,
        dtype=compute.dtype,
        window=model.local_attention_window,
    )
    if obstacle is None and model.attention_dropout_rate:
        return f"{_NO_DROPOUT} {model.attention_dropout_rate}"
    return obstacle


@jax.named_scope("attention")
def attend(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    padding_mask: Bool[Array, "B L"],
    document_ids: Int[Array, "B L"] | None = None,
    reach: Int[Array, ""] | None = None,
    *,
    implementation: Attention = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L H K"]:
    """softmax(q·k / √K) · v with dropout on the weights (Vaswani et al. 2017), softmax in at least float32.

    Keys where `padding_mask` is False get no weight, and with `document_ids` neither do keys of another document than
    the query's, nor with `reach` those more than so many positions away. A query that has no key left attends uniformly
    and stays finite. `implementation` is what `choose_attention` chose: XLA, to whose values the kernels keep within
    rounding, where nothing was chosen.

    Raises:
        InputError: dropout on the weights from a kernel, or `reach` from splash.
    """
    inputs = (query, key, value, padding_mask, document_ids, reach)
    if implementation in ("auto", "xla"):
        return xla_attention(*inputs, dropout_rate=dropout_rate, dropout_key=dropout_key)
    if dropout_rate and dropout_key is not None:
        raise InputError(f"compute.attention = {implementation!r}: {_NO_DROPOUT} {dropout_rate}")
    kernel = _KERNELS[implementation]
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(*inputs)
    # A kernel is one operation to the partitioner: it is told here what part of it each device computes.
    heads, tokens, scalar = (
        partition_spec(("batch", "length", "heads", "head_dim")),
        partition_spec(("batch", "length")),
        partition_spec(()),
    )
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, tokens, tokens, scalar), out_specs=heads, check_vma=False
    )(*inputs)


def xla_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    padding_mask: Bool[Array, "B L"],
    document_ids: Int[Array, "B L"] | None,
    reach: Int[Array, ""] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L H K"]:
    """The reference, operation by operation: the weights are an array [B, H, L, L], also in layers of little reach.

    The mask is a finite number, where -inf would give NaN in a row that is all padding.
    """
    scores = jnp.einsum("blhk,bshk->bhls", query, key) / query.shape[-1] ** 0.5
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    mask = padding_mask[:, None, None, :]
    if document_ids is not None:
        mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
    if reach is not None:
        mask = mask & within_reach(query.shape[1], reach)[None, None]
    scores = jnp.where(mask, scores, 0.5 * jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhls,bshk->blhk", weights, value)
