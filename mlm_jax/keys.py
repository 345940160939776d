"""Random keys of a run: one counter-based stream per (seed, purpose).

Keys are threefry on every backend, because its bits, unlike `rbg`'s, are the same under jit, vmap and any sharding.
"""

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlm_jax.errors import InputError


class Purpose(enum.IntEnum):
    """Purpose of a stream of random numbers. Changing a value changes the results of every run."""

    PARAMETERS = 0
    MASKING = 1
    DROPOUT = 2
    CLASSIFIER = 3


def purpose_key(seed: int | Array | np.ndarray, purpose: Purpose, generator: str = "threefry2x32") -> Array:
    """Returns the scalar key of the stream for `purpose`.

    Raises:
        InputError: `seed` is neither an array nor a whole number in [0, 2**32).
    """
    # JAX would take other integers modulo 2**32, so that two seeds have the same numbers.
    is_array = isinstance(seed, Array | np.ndarray | np.integer) and jnp.issubdtype(seed.dtype, jnp.integer)
    if not is_array and not (type(seed) is int and 0 <= seed < 2**32):
        raise InputError(f"seed = {seed!r}: must be a whole number in [0, 2**32)")
    return jax.random.fold_in(jax.random.key(seed, impl=generator), purpose)
