"""A keyed permutation of [0, size) that can be evaluated at any position in O(1) time and memory."""

import numpy as np

_ROUNDS = 6


def permute(positions: np.ndarray, size: int, seed: int, epoch: int, *parts: int) -> np.ndarray:
    """Returns the int64 values at `positions` of the permutation of [0, `size`) given by (`seed`, `epoch`, *`parts`).

    Applies a Feistel network over the next power of two (Luby & Rackoff 1988) until the value is in [0, size) (cycle
    walking, Black & Rogaway 2002): on average less than twice per position.

    Args:
        positions: integers in [0, size), any shape.
        parts: further numbers of the key, each at least 1, because NumPy pads keys with zeros.
    """
    round_keys = np.random.SeedSequence([seed, epoch, *parts]).generate_state(_ROUNDS, np.uint64)
    bits = max(2, int(size - 1).bit_length())
    values = np.asarray(positions).astype(np.uint64)
    values = _feistel(values, bits, round_keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values.flat[outside] = _feistel(values.flat[outside], bits, round_keys)
        outside = outside[values.flat[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, round_keys: np.ndarray) -> np.ndarray:
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = values & low_mask, values >> low_bits
    for number, key in enumerate(round_keys):
        if number % 2:
            low = low ^ (_mix(high ^ key) & low_mask)
        else:
            high = high ^ (_mix(low ^ key) & high_mask)
    return (high << low_bits) | low


def _mix(x: np.ndarray) -> np.ndarray:
    """Applies the finalizer of splitmix64 (Steele et al. 2014); products wrap around."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
