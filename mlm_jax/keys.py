"""Where every random number of a run comes from: a counter-based key for (seed, purpose), folded with a counter.

Keys are threefry on every backend: its bits are the same under jit, vmap and any sharding (`rbg`'s are not).
"""

import enum

import jax
import numpy as np
from jax import Array


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for. The values are part of what makes a run reproducible."""

    PARAMETERS = 0
    MASKING = 1
    DROPOUT = 2
    CLASSIFIER = 3


def purpose_key(seed: int | Array | np.ndarray, purpose: Purpose, generator: str = "threefry2x32") -> Array:
    """The key, of shape [], of one purpose's stream under `seed` in [0, 2**32)."""
    return jax.random.fold_in(jax.random.key(seed, impl=generator), purpose)
