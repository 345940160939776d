"""Threefry-2x32 (Salmon et al. 2011) written out, with the bits of `jax.random.bits`.

JAX's own is a loop where XLA compiles for CPU, and every turn of it writes four arrays of the shape asked for. Written
out it fuses with whatever reads the bits, which then never lie in memory: a tenth of the time for the words of masks.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, Int32, Key, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def random_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """`jax.random.bits(key, shape)`, bit for bit; JAX's own for another generator, or for 2^32 numbers and more."""
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
    """`random_bits(key, index.shape)[index]`, without looking anything up where the generator is Threefry."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return random_bits(key, index.shape)[index]
    high, low = _hash(key, index.astype(jnp.uint32))
    return high ^ low


def random_pair(key: Key[Array, ""], number: Int[Array, ""]) -> UInt32[Array, " two"]:
    """Two random words, the `number`-th pair of the key: what a loop draws that does not know how often it turns."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(jax.random.fold_in(key, number), (2,), jnp.uint32)
    return jnp.stack(_hash(key, jnp.asarray(number, jnp.uint32)))


def fold_in(key: Key[Array, ""], number: int | Int[Array, ""]) -> Key[Array, ""]:
    """`jax.random.fold_in(key, number)`, bit for bit; JAX's own for another generator."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.fold_in(key, number)
    words = jnp.stack(_hash(key, jnp.asarray(number, jnp.uint32)))
    # What fuses with the bits that a key gives would be computed again for each of them.
    return jax.random.wrap_key_data(jax.lax.optimization_barrier(words))


def split(key: Key[Array, ""], count: int) -> list[Key[Array, ""]]:
    """`count` keys; for Threefry those of `jax.random.split(key, count)`, bit for bit."""
    return [fold_in(key, number) for number in range(count)]


def random_below(key: Key[Array, ""], shape: tuple[int, ...], limit: int) -> Int32[Array, "..."]:
    """`jax.random.randint(key, shape, 0, limit, jnp.int32)`, bit for bit, for Threefry; `limit` in [1, 2^31)."""
    higher, lower = (random_bits(half, shape) for half in split(key, 2))
    # The remainder of 64 bits, without the higher 32 where limit is above 2^16: JAX's square overflows.
    divisor, of_higher = np.uint32(limit), np.uint32((2**16 % limit) ** 2 % 2**32 % limit)
    return ((higher % divisor * of_higher + lower % divisor) % divisor).astype(jnp.int32)


def _hash(key: Array, low: Array) -> list[Array]:
    """The two words that Threefry makes of (0, low)."""
    first, second = jax.random.key_data(key)
    schedule = (first, second, first ^ second ^ _PARITY)
    words = [jnp.broadcast_to(schedule[0], low.shape), low + schedule[1]]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            words[0] += words[1]
            words[1] = ((words[1] << rotation) | (words[1] >> (32 - rotation))) ^ words[0]
        words[0] += schedule[(turn + 1) % 3]
        words[1] += schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return words
