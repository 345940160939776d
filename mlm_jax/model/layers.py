"""Parts of a BERT layer, and the declaration of weights with their shape, logical axes and initializer.

Modules have parameters and a forward computation but no mutable state; dropout keys are arguments. Parameters are
float32. A module computes in the dtype of its input, a norm internally in float32.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mlm_jax.config.model import Activation, BertConfig, HeadActivation, PoolerKind
from mlm_jax.threefry import random_bits


def parameter(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    stddev: float = 0.0,
    mean: float = 0.0,
) -> nnx.Param:
    """Declares a float32 weight with one logical axis per dimension, drawn from a normal truncated at 2 stddev.

    The truncated normal is the initializer of google-research/bert; a stddev of 0 yields the constant `mean`.
    `mlm_jax.parallel.weights` derives shardings and other properties from the axes.
    """
    value = jnp.full(shape, mean, jnp.float32)
    if stddev:
        # nn.initializers would rescale to the stddev after truncation; BERT specifies the stddev before truncation.
        value += stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    # Whole parameter trees are placed on the mesh, so a variable must not shard itself on creation.
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Any]:
    """Splits a model into its static graph and its parameters, a plain nested dict."""
    graph, state = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(state)


# For cheap computations whose inputs are stored anyway. In a scan over layers, only the inputs are stored for the
# backward pass; elsewhere XLA may store more.
recomputed = partial(jax.checkpoint, prevent_cse=False)


def activate(x: Array, kind: Activation | HeadActivation | PoolerKind) -> Array:
    """Applies GELU (Hendrycks & Gimpel 2016), exact or approximated by tanh, SiLU, also for `"swiglu"`, ReLU or tanh.

    For gated activations, `x` is the gate branch.
    """
    if kind in ("tanh", "relu"):
        return jnp.tanh(x) if kind == "tanh" else jax.nn.relu(x)
    return jax.nn.silu(x) if kind in ("silu", "swiglu") else jax.nn.gelu(x, approximate=kind == "gelu_tanh")


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Zeros a fraction `rate` of `x` and scales the rest by 1 / (1 - rate); returns `x` if there is no key."""
    if key is None or rate == 0.0:
        return x
    # Like jax.random.bernoulli, compares the 23 bits of a uint32 that form a float32 in [0, 1).
    keep = random_bits(key, x.shape) >> 9 < np.uint32(math.ceil(float(np.float32(1.0 - rate)) * 2**23))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Linear(nnx.Module):
    """`y = x · kernel + bias`, replacing the last dimensions of x, `inputs`, by `outputs`.

    `axes` are the logical axes of the kernel, inputs first; the optional bias has the axes of the outputs.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        stddev: float,
        key: Key[Array, ""],
        bias: bool = True,
    ) -> None:
        self.num_contracted = len(inputs)
        self.kernel = parameter(key, inputs + outputs, axes, stddev=stddev)
        if bias:
            self.bias = parameter(key, outputs, axes[len(inputs) :])

    def __call__(self, x: Array) -> Array:
        """Maps [..., *inputs] to [..., *outputs], in the dtype of `x`."""
        y = jnp.tensordot(x, self.kernel[...].astype(x.dtype), axes=self.num_contracted)
        if not hasattr(self, "bias"):
            return y
        bias = self.bias[...].astype(x.dtype)
        return y + jnp.expand_dims(bias, range(y.ndim - bias.ndim))


class LayerNorm(nnx.Module):
    """Layer normalization over the last dimension (Ba et al. 2016), with mean and variance in float32."""

    def __init__(self, hidden_dim: int, *, epsilon: float, key: Key[Array, ""], bias: bool = True) -> None:
        self.epsilon = epsilon
        self.scale = parameter(key, (hidden_dim,), ("embed",), mean=1.0)
        if bias:
            self.bias = parameter(key, (hidden_dim,), ("embed",))

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        """Returns the normalized `x`, with the same shape and dtype."""
        bias = self.bias[...] if hasattr(self, "bias") else None
        return recomputed(partial(_normalize, epsilon=self.epsilon))(x, self.scale[...], bias)


class RMSNorm(nnx.Module):
    """Division by the root mean square of the last dimension (Zhang & Sennrich 2019), computed in float32."""

    def __init__(self, hidden_dim: int, *, epsilon: float, key: Key[Array, ""]) -> None:
        self.epsilon = epsilon
        self.scale = parameter(key, (hidden_dim,), ("embed",), mean=1.0)

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        """Returns the normalized `x`, with the same shape and dtype."""
        return recomputed(partial(_normalize, epsilon=self.epsilon, center=False))(x, self.scale[...], None)


def make_norm(
    config: BertConfig, *, epsilon: float, key: Key[Array, ""], width: int | None = None
) -> LayerNorm | RMSNorm:
    """Returns a norm of the config's kind, of this width, by default `hidden_dim`."""
    width = config.hidden_dim if width is None else width
    if config.norm == "rms_norm":
        return RMSNorm(width, epsilon=epsilon, key=key)
    return LayerNorm(width, epsilon=epsilon, key=key, bias=config.biases)


def _normalize(x: Array, scale: Array, bias: Array | None, *, epsilon: float, center: bool = True) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True) if center else wide
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normal = centered * jax.lax.rsqrt(variance + epsilon)
    leading = range(x.ndim - 1)
    scaled = normal * jnp.expand_dims(scale, leading)
    return (scaled if bias is None else scaled + jnp.expand_dims(bias, leading)).astype(x.dtype)
