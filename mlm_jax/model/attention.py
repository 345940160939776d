"""Scaled dot-product attention: public function, XLA implementation, and choice between XLA and the kernels.

B batch, L length, H heads, K head width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from mlm_jax.config import Attention, ComputeConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.model.blocks import in_blocks, visible
from mlm_jax.model.kernels import cudnn_attention, cudnn_obstacle, splash_attention, splash_obstacle
from mlm_jax.model.layers import dropout
from mlm_jax.parallel.sharding import partition_spec

# "auto" uses a kernel from this length on; in shorter rows the weights are small compared with other activations.
_KERNEL_LENGTH = 512

_KERNELS: Mapping[str, Callable[..., Array]] = {"cudnn": cudnn_attention, "splash": splash_attention}
_OBSTACLES: Mapping[str, Callable[..., str | None]] = {"cudnn": cudnn_obstacle, "splash": splash_obstacle}
_KERNEL_OF_PLATFORM: Mapping[str, Literal["cudnn", "splash"]] = {"gpu": "cudnn", "tpu": "splash"}
_NO_BIAS = "needs model.relative_position_buckets = 0, because kernels add nothing to the scores"
_NO_DROPOUT = "needs model.attention_dropout_rate = 0, because kernels have no dropout, not"


class AttentionChoice(NamedTuple):
    """Implementation of attention, and the reason if it is not the platform's kernel."""

    implementation: Literal["xla", "cudnn", "splash"]
    reason: str = ""


def choose_attention(compute: ComputeConfig, model: BertConfig, length: int, device: Any) -> AttentionChoice:
    """Chooses the implementation for training and evaluation on rows of `length` tokens.

    `device` is one of the devices that the program is compiled for, attached or not. Kernels do not support dropout on
    the weights (cuDNN does, but JAX's public function does not offer it, and its seed could not change from step to
    step), so an `attention_dropout_rate` above 0 requires XLA.

    Raises:
        InputError: the config names a kernel that cannot run on this device or does not support the model.
    """
    if compute.attention == "xla":
        return AttentionChoice("xla")
    if compute.attention != "auto":
        obstacle = _obstacle(compute.attention, compute, model, length, device)
        if obstacle:
            raise InputError(
                f"compute.attention = {compute.attention!r}: {obstacle}; 'auto' chooses one that can"
            )
        return AttentionChoice(compute.attention)
    kernel = _KERNEL_OF_PLATFORM.get(device.platform)
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
    )
    if obstacle is None and model.relative_position_buckets:
        return _NO_BIAS
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
    reach: int | None = None,
    bias: Float[Array, "H L L"] | None = None,
    *,
    implementation: Attention = "auto",
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L H K"]:
    """Returns softmax(q·k / √K) · v (Vaswani et al. 2017) with dropout on the weights.

    Scores and softmax are computed in at least float32; `bias` is added to the scores. Keys get no weight if their
    `padding_mask` is False, if their document is not the query's, or if they are more than `reach` positions away. A
    query without keys attends uniformly to some and stays finite. `implementation` is the result of `choose_attention`;
    "auto" means XLA here. The kernels agree with XLA up to rounding.

    Raises:
        InputError: dropout on the weights or a `bias` is used with a kernel.
    """
    inputs = (query, key, value, padding_mask, document_ids)
    if implementation in ("auto", "xla"):
        return xla_attention(*inputs, reach, bias, dropout_rate=dropout_rate, dropout_key=dropout_key)
    if bias is not None:
        raise InputError(f"compute.attention = {implementation!r}: {_NO_BIAS}")
    if dropout_rate and dropout_key is not None:
        raise InputError(f"compute.attention = {implementation!r}: {_NO_DROPOUT} {dropout_rate}")
    kernel = partial(_KERNELS[implementation], reach=reach)
    if jax.sharding.get_abstract_mesh().empty:
        return kernel(*inputs)
    # The partitioner cannot split a kernel, so its division among the devices is specified here.
    heads, tokens = (
        partition_spec(("batch", "length", "heads", "head_dim")),
        partition_spec(("batch", "length")),
    )
    return jax.shard_map(
        kernel, in_specs=(heads, heads, heads, tokens, tokens), out_specs=heads, check_vma=False
    )(*inputs)


def xla_attention(
    query: Float[Array, "B L H K"],
    key: Float[Array, "B L H K"],
    value: Float[Array, "B L H K"],
    padding_mask: Bool[Array, "B L"],
    document_ids: Int[Array, "B L"] | None,
    reach: int | None = None,
    bias: Float[Array, "H L L"] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B L H K"]:
    """Computes attention with XLA. Stores the weights: [B, H, L, L], or those within reach of each block of a row."""
    masked = partial(masked_attention, dropout_rate=dropout_rate, dropout_key=dropout_key)
    if reach is None or bias is not None:
        return masked(query, key, value, visible(padding_mask, document_ids, reach), bias)
    return in_blocks(masked, query, key, value, padding_mask, document_ids, reach)


def masked_attention(
    query: Float[Array, "N Q H K"],
    key: Float[Array, "N S H K"],
    value: Float[Array, "N S H K"],
    mask: Bool[Array, "#N #Q S"],
    bias: Float[Array, "H Q S"] | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "N Q H K"]:
    """Reference implementation of attention to the keys where `mask` is True.

    Masked scores are finite, because -inf would produce NaN in a row that is all padding.
    """
    scores = _scores(query, key) / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias[None].astype(scores.dtype)
    scores = jnp.where(mask[:, None], scores, 0.5 * jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhls,bshk->blhk", weights, value)


@jax.custom_vjp
def _scores(query: Array, key: Array) -> Array:
    """Returns q·k, [B, H, L, L], in at least float32, because exp would magnify the rounding of scores to bfloat16.

    A custom gradient keeps the products of the backward pass in the dtype of the inputs; JAX would multiply a float32
    array by a bfloat16 one.
    """
    return _products(query, key, preferred_element_type=jnp.promote_types(query.dtype, jnp.float32))


def _scores_and_inputs(query: Array, key: Array) -> tuple[Array, tuple[Array, Array]]:
    return _scores(query, key), (query, key)


def _gradient_of_scores(inputs: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    _, pull_back = jax.vjp(_products, *inputs)
    gradients: tuple[Array, Array] = pull_back(cotangent.astype(inputs[0].dtype))
    return gradients


_scores.defvjp(_scores_and_inputs, _gradient_of_scores)
_products = partial(jnp.einsum, "blhk,bshk->bhls")
