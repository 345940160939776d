"""The parts a BERT layer is made of. One declaration a weight: shape, logical axes and initialiser together.

Modules hold parameters and a forward computation, nothing that changes: dropout keys are arguments. Parameters are
float32; a module computes in the dtype of its input, a norm inside in float32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Key

from mlm_jax.config.model import Activation, BertConfig
from mlm_jax.threefry import random_bits


def parameter(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    stddev: float = 0.0,
    mean: float = 0.0,
) -> nnx.Param:
    """A float32 weight with one logical axis a dimension, drawn from a normal distribution truncated at 2 stddev.

    The truncated normal is google-research/bert's initialiser; a stddev of 0 gives the constant `mean`.
    """
    value = jnp.full(shape, mean, jnp.float32)
    if stddev:
        # nn.initializers would rescale to the stddev after truncation; BERT's stddev is before it.
        value += stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    # The mesh is applied to whole parameter trees, so no variable may shard itself when it is made.
    return nnx.Param(value, out_sharding=axes, eager_sharding=False)


# What is cheap to compute again from what is kept anyway: in a loop over layers the backward pass keeps the input
# alone; elsewhere XLA may keep more.
recomputed = partial(jax.checkpoint, prevent_cse=False)


def activate(x: Array, kind: Activation) -> Array:
    """GELU (Hendrycks & Gimpel 2016): exact, by erf, or its tanh approximation; for `"swiglu"` SiLU.

    Of a gated kind it is what one of the two maps goes through.
    """
    return jax.nn.silu(x) if kind == "swiglu" else jax.nn.gelu(x, approximate=kind == "gelu_tanh")


def dropout(x: Array, rate: float, key: Key[Array, ""] | None) -> Array:
    """Zero a share `rate` of `x` and scale the rest by 1 / (1 - rate); without a key, `x` itself."""
    if key is None or rate == 0.0:
        return x
    # As jax.random.bernoulli has it: of a word the 23 bits that make a float32 in [0, 1).
    keep = random_bits(key, x.shape) >> 9 < np.uint32(math.ceil(float(np.float32(1.0 - rate)) * 2**23))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Linear(nnx.Module):
    """`y = x · kernel + bias`, contracting the last dimensions of x (`inputs`) and giving `outputs` in their place.

    `axes` names the logical axes of the kernel, inputs first; the bias, where there is one, has the outputs' axes.
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
        """[..., *inputs] to [..., *outputs], in the dtype of `x`."""
        y = jnp.tensordot(x, self.kernel[...].astype(x.dtype), axes=self.num_contracted)
        if not hasattr(self, "bias"):
            return y
        bias = self.bias[...].astype(x.dtype)
        return y + jnp.expand_dims(bias, range(y.ndim - bias.ndim))


class LayerNorm(nnx.Module):
    """Layer normalisation over the last dimension (Ba et al. 2016), with mean and variance in float32."""

    def __init__(self, hidden_dim: int, *, epsilon: float, key: Key[Array, ""], bias: bool = True) -> None:
        self.epsilon = epsilon
        self.scale = parameter(key, (hidden_dim,), ("embed",), mean=1.0)
        if bias:
            self.bias = parameter(key, (hidden_dim,), ("embed",))

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        """Same shape and dtype as `x`."""
        bias = self.bias[...] if hasattr(self, "bias") else None
        return recomputed(partial(_normalise, epsilon=self.epsilon))(x, self.scale[...], bias)


class RMSNorm(nnx.Module):
    """Division by the root mean square of the last dimension (Zhang & Sennrich 2019), which is in float32."""

    def __init__(self, hidden_dim: int, *, epsilon: float, key: Key[Array, ""]) -> None:
        self.epsilon = epsilon
        self.scale = parameter(key, (hidden_dim,), ("embed",), mean=1.0)

    def __call__(self, x: Float[Array, "*batch hidden"]) -> Float[Array, "*batch hidden"]:
        """Same shape and dtype as `x`."""
        return recomputed(partial(_normalise, epsilon=self.epsilon, centre=False))(x, self.scale[...], None)


def make_norm(config: BertConfig, *, epsilon: float, key: Key[Array, ""]) -> LayerNorm | RMSNorm:
    """The norm that the config names, of its width."""
    if config.norm == "rms_norm":
        return RMSNorm(config.hidden_dim, epsilon=epsilon, key=key)
    return LayerNorm(config.hidden_dim, epsilon=epsilon, key=key, bias=config.biases)


def _normalise(x: Array, scale: Array, bias: Array | None, *, epsilon: float, centre: bool = True) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True) if centre else wide
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + epsilon)
    leading = range(x.ndim - 1)
    scaled = normal * jnp.expand_dims(scale, leading)
    return (scaled if bias is None else scaled + jnp.expand_dims(bias, leading)).astype(x.dtype)
