"""Threefry-2x32 (Salmon et al. 2011), unrolled, with the same bits as `jax.random.bits`.

On CPU, JAX's implementation compiles to a loop that writes four arrays of the requested shape in every iteration.
Unrolled, the computation fuses with the consumer of the bits, which are then never stored: the random numbers of
masking take a tenth of the time.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, Int32, Key, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def random_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns `jax.random.bits(key, shape)`, and calls it for other generators and for 2^32 or more numbers."""
    size = math.prod(shape)
    if str(jax.random.key_impl(key)) != "threefry2x32" or size >= 2**32:
        return jax.random.bits(key, shape, jnp.uint32)
    index, stride = jnp.zeros(shape, jnp.uint32), size
    for axis, dimension in enumerate(shape):
        stride //= max(dimension, 1)
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    high, low = _hash(key, index)
    return high ^ low


def random_bits_at(key: Key[Array, ""], index: Int[Array, " size"]) -> UInt32[Array, " size"]:
    """Returns `random_bits(key, index.shape)[index]`; for Threefry, computes only the indexed numbers."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return random_bits(key, index.shape)[index]
    high, low = _hash(key, index.astype(jnp.uint32))
    return high ^ low


def random_pair(key: Key[Array, ""], number: Int[Array, ""]) -> UInt32[Array, " two"]:
    """Returns the `number`-th pair of random uint32 of a key, for loops of unknown length."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32)
    return jnp.stack(_hash(key, jnp.asarray(number, jnp.uint32)))


def fold_in(key: Key[Array, ""], number: int | Int[Array, ""]) -> Key[Array, ""]:
    """Returns `jax.random.fold_in(key, number)`, and calls it for other generators."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.fold_in(key, number)
    data = jnp.stack(_hash(key, jnp.asarray(number, jnp.uint32)))
    # Without the barrier, the key would fuse with its bits and be recomputed for each of them.
    return jax.random.wrap_key_data(jax.lax.optimization_barrier(data))


def split(key: Key[Array, ""], count: int) -> list[Key[Array, ""]]:
    """Returns `count` keys; for Threefry they equal `jax.random.split(key, count)`."""
    return [fold_in(key, number) for number in range(count)]


def random_below(key: Key[Array, ""], shape: tuple[int, ...], limit: int) -> Int32[Array, "..."]:
    """Returns int32 in [0, limit), for Threefry those of `jax.random.randint`; `limit` is in [1, 2^31)."""
    higher, lower = (random_bits(half, shape) for half in split(key, 2))
    # The remainder of 64 random bits; for a limit above 2^16 the higher 32 are lost, because JAX's square overflows.
    divisor, of_higher = np.uint32(limit), np.uint32((2**16 % limit) ** 2 % 2**32 % limit)
    return ((higher % divisor * of_higher + lower % divisor) % divisor).astype(jnp.int32)


# Traced once per shape instead of at every call; the program that XLA sees is the same.
@partial(jax.jit, inline=True)
def _hash(key: Array, low: Array) -> list[Array]:
    """Returns the two uint32 outputs of Threefry for the counter (0, low)."""
    first, second = jax.random.key_data(key)
    schedule = (first, second, first ^ second ^ _PARITY)
    state = [jnp.broadcast_to(schedule[0], low.shape), low + schedule[1]]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            state[0] += state[1]
            state[1] = ((state[1] << rotation) | (state[1] >> (32 - rotation))) ^ state[0]
        state[0] += schedule[(block + 1) % 3]
        state[1] += schedule[(block + 2) % 3] + np.uint32(block + 1)
    return state
