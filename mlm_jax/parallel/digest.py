"""Digests of arrays, to check that their bits have not changed and that all values are finite; for any mesh."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


class Digest(NamedTuple):
    """Summary of an array."""

    bits: int
    """32-bit number that changes with any element and its position, and does not depend on the mesh."""
    finite: bool
    """True if no element is NaN or infinite."""


def array_digests(leaves: dict[str, jax.Array]) -> dict[str, Digest]:
    """Returns a digest of each array (any shape; bool, integer or float), computed on its devices in one pass."""
    # Sorted, because Orbax restores arrays in a different order, and a restore should reuse the program of the save.
    names = sorted(leaves)
    bits, finite = jax.device_get(_program(leaves[names[0]].sharding)([leaves[name] for name in names]))
    return dict(zip(names, map(Digest, bits.tolist(), finite.tolist()), strict=True))


def nonfinite(digests: dict[str, Digest]) -> list[str]:
    """Returns the names of the arrays that have a NaN or infinite element."""
    return [name for name, digest in digests.items() if not digest.finite]


@cache
def _program(
    sharding: jax.sharding.Sharding,
) -> Callable[[list[jax.Array]], tuple[jax.Array, jax.Array]]:
    """Returns the program for arrays on the devices of `sharding`; every process gets all digests."""
    everywhere = sharding
    if isinstance(sharding, NamedSharding):
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.jit(_digest_all, out_shardings=everywhere)


def _digest_all(arrays: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return jnp.stack([_digest(array) for array in arrays]), jnp.stack([_is_finite(array) for array in arrays])


def _is_finite(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.ones((), jnp.bool_)
    return jnp.all(jnp.isfinite(array))


def _digest(array: jax.Array) -> jax.Array:
    """Returns the sum modulo 2^32 of a hash of (position, bits) over all elements: uint32 scalar.

    Integer addition is exact in any order, so the sharding does not matter. For a fixed position the hash is a
    bijection of the bits, so a change within one element (or one 32-bit half of a 64-bit element) is always detected;
    any other change is missed with probability 2^-32. Without the mixing, a sum of `bits * odd` would miss flipped sign
    bits in any two elements. The constants are from hash-prospector (C. Wellons), and 2^32 / golden ratio.
    """
    if array.dtype == jnp.bool_:
        words = array.astype(jnp.uint32)
    else:
        words_dtype = f"uint{8 * min(array.dtype.itemsize, 4)}"
        words = jax.lax.bitcast_convert_type(array, words_dtype).astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += iota * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = words ^ (position * np.uint32(0x9E3779B9))
    mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x21F0AAAD)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x735A2D97)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)
