"""Keys and rows in; masked rows, positions, ids and weights out. Pure, jittable, and needs only jax and ids.

The mask of a row depends on (seed, epoch, example id, row content, config) and on nothing else: not on the batch
it travels in, the devices, the processes or the mesh. All that follows is integer arithmetic on threefry bits and
comparisons of float32 values that are never summed, so it is the same to the bit on every backend.

Every selectable position draws one random word, and the k smallest words are selected. The laws differ only in k:

    "ceil"       k = min(ceil(float32(n) · float32(rate)), K)                 KerasHub inside tf.data
    "bernoulli"  k = min(how many words lie below rate · 2³¹, K)              Hugging Face; KerasHub, eager
    "bert"       k = min(K, n, max(1, round(rate · non-padding tokens)))      google-research/bert

with n selectable positions and K = mask_selection_length. Words are independent and uniform, so the k smallest
are a uniformly random subset without replacement, also among those that Bernoulli chose when K cuts them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32, Int, Integer, Key, UInt32

from mlm_jax.config import MaskingConfig
from mlm_jax.counting import WORD_BITS, count_true, positions_of_smallest
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.threefry import fold_in, random_below, random_bits, split

HostOrDevice = Array | np.ndarray

# Larger than every word, so that what cannot be selected comes last.
_NEVER = np.uint32(2**32 - 1)


class MaskedTokens(NamedTuple):
    """Rows after masking. K = mask_selection_length; batch dimensions as in the input."""

    token_ids: Int[Array, "*batch length"]
    """The rows after replacement, int32."""
    mask_positions: Int[Array, "*batch K"]
    """Selected positions, strictly ascending, padded with 0, int32."""
    mask_ids: Int[Array, "*batch K"]
    """The original ids at those positions, padded with 0, int32."""
    mask_weights: Float32[Array, "*batch K"]
    """1 for a selection, 0 for padding."""


def example_keys(
    seed: int | Integer[HostOrDevice, ""],
    epoch: int | Integer[HostOrDevice, " batch"],
    example_ids: Integer[HostOrDevice, " batch"],
) -> Key[Array, " batch"]:
    """One masking key an example, a function of (seed, epoch, example id) alone.

    Args:
        seed: in [0, 2**32); 0 is a seed like any other.
        epoch: one for all examples, or one an example, as in a batch that crosses the end of an epoch.
        example_ids: in [0, 2**32).

    Raises:
        ValueError: an id on the host, in a NumPy array, lies outside that range.
    """
    if isinstance(example_ids, np.ndarray):
        outside = (example_ids < 0) | (example_ids >= 2**32)
        if outside.any():
            raise ValueError(f"example_ids: {example_ids[outside][0]} is not in [0, 2**32)")
        example_ids = example_ids.astype(np.uint32)
    ids = jnp.asarray(example_ids).astype(jnp.uint32)
    epochs = jnp.broadcast_to(jnp.asarray(epoch, jnp.uint32), ids.shape)
    stream = purpose_key(seed, Purpose.MASKING)
    return jax.vmap(lambda e, i: fold_in(fold_in(stream, e), i))(epochs, ids)


def mask_tokens(
    key: Key[Array, "..."], token_ids: Integer[HostOrDevice, "*batch length"], config: MaskingConfig
) -> MaskedTokens:
    """Select positions by the config's law and replace them by BERT's 80/10/10 rule (Devlin et al. 2018).

    One uniform number u decides each selected position: u < mask_token_rate gives the mask token, u <
    mask_token_rate + random_token_rate a random id, anything else leaves the token as it is.

    Args:
        key: typed keys (`jax.random.key`): one a row, shape [batch], or a single one, from which row keys are
            folded by row index; for a single row, shape [].
        token_ids: [length] or [batch, length], any integer dtype.
        config: static; give it to `jax.jit` as a static argument.

    Raises:
        ValueError: the shapes of key and token_ids do not belong together, or the ids are not integers.
    """
    token_ids = jnp.asarray(token_ids)
    if not jnp.issubdtype(token_ids.dtype, jnp.integer):
        raise ValueError(f"token_ids has dtype {token_ids.dtype}: must be an integer dtype")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key has dtype {key.dtype}: must be a typed key, from jax.random.key or example_keys"
        )
    token_ids = token_ids.astype(jnp.int32)
    if token_ids.ndim == 1 and key.shape == ():
        return _mask_row(key, token_ids, config)
    if token_ids.ndim != 2 or key.shape not in ((), token_ids.shape[:1]):
        raise ValueError(
            f"key {key.shape} and token_ids {token_ids.shape}: must be [] with [length], or [] or [batch] with "
            "[batch, length]"
        )
    if key.shape == ():
        key = jax.vmap(fold_in, in_axes=(None, 0))(key, jnp.arange(token_ids.shape[0]))
    return jax.vmap(_mask_row, in_axes=(0, 0, None))(key, token_ids, config)


def selectable_positions(
    token_ids: Int[HostOrDevice, "*batch length"], config: MaskingConfig
) -> Bool[Array, "*batch length"]:
    """True where a position may be selected; bool, shaped as `token_ids`."""
    unselectable = jnp.asarray(config.unselectable_token_ids, jnp.int32)
    return jnp.all(
        jnp.asarray(token_ids)[..., None] != jnp.expand_dims(unselectable, range(token_ids.ndim)), axis=-1
    )


def wanted_selections(
    keys: Key[Array, " batch"], token_ids: Integer[HostOrDevice, "batch length"], config: MaskingConfig
) -> Int[Array, " batch"]:
    """How many positions of each row the law asks for, before `mask_selection_length` limits them.

    Under one jit with `mask_tokens` and the same keys it costs next to nothing: the words are the same.
    """

    def wanted(key: Key[Array, ""], row: Int[Array, " length"]) -> Int[Array, ""]:
        return _wanted(_words(split(key, 3)[0], row.shape[0]), row, config)

    return jax.vmap(wanted)(keys, jnp.asarray(token_ids, jnp.int32))


@jax.named_scope("mask_tokens")
def _mask_row(key: Key[Array, ""], token_ids: Int[Array, " length"], config: MaskingConfig) -> MaskedTokens:
    select_key, decide_key, draw_key = split(key, 3)
    positions = _select_tokens(select_key, token_ids, config)
    length, slots = token_ids.shape[0], positions.shape[0]
    selected = positions < length
    original = jnp.where(selected, token_ids.at[positions].get(mode="clip"), 0)

    # The bits and the rounding of jax.random.uniform.
    u = (random_bits(decide_key, (slots,)) >> 9).astype(jnp.float32) * np.float32(2**-23)
    random_ids = _draw_token_ids(draw_key, slots, config)
    mask_rate = np.float32(config.mask_token_rate)
    changed_rate = np.float32(config.mask_token_rate + config.random_token_rate)
    replacement = jnp.where(
        u < mask_rate, config.mask_token_id, jnp.where(u < changed_rate, random_ids, original)
    )
    return MaskedTokens(
        token_ids=token_ids.at[positions].set(replacement, mode="drop"),
        mask_positions=jnp.where(selected, positions, 0),
        mask_ids=original,
        mask_weights=selected.astype(jnp.float32),
    )


def _select_tokens(
    key: Key[Array, ""], token_ids: Int[Array, " length"], config: MaskingConfig
) -> Int[Array, " K"]:
    """Selected positions, ascending; the slots left over hold `length`, which no position has."""
    length, slots = token_ids.shape[0], config.mask_selection_length
    words = _words(key, length)
    count = jnp.minimum(_wanted(words, token_ids, config), slots)
    words = jnp.where(selectable_positions(token_ids, config), words, _NEVER)
    return positions_of_smallest(words, count, slots)


def _words(key: Key[Array, ""], length: int) -> UInt32[Array, " length"]:
    return random_bits(key, (length,)) >> (32 - WORD_BITS)


def _wanted(
    words: UInt32[Array, " length"], token_ids: Int[Array, " length"], config: MaskingConfig
) -> Int[Array, ""]:
    """How many positions of a row the law asks for: the k of the module's table before K limits it."""
    rate, length = config.mask_selection_rate, token_ids.shape[0]
    selectable = selectable_positions(token_ids, config)
    if config.selection == "bernoulli":
        return count_true(selectable & (words < np.uint32(round(rate * 2**WORD_BITS))))
    # A table over all counts, made on the host: no backend gets to round the product its own way.
    counts = np.arange(length + 1)
    if config.selection == "ceil":
        table = np.ceil(counts.astype(np.float32) * np.float32(rate)).astype(np.int32)
        return jnp.asarray(table)[count_true(selectable)]
    # Python's round, half to even, of a double, as create_pretraining_data.py has it.
    table = np.array([max(1, round(int(count) * rate)) for count in counts], np.int32)
    real = count_true(token_ids != config.padding_token_id)
    return jnp.minimum(jnp.asarray(table)[real], count_true(selectable))


def _draw_token_ids(key: Key[Array, ""], count: int, config: MaskingConfig) -> Int[Array, " count"]:
    """Ids drawn uniformly from the random pool.

    An index into the pool becomes an id by stepping over each special id at or below it, in ascending order:
    exact, and without a table the size of the vocabulary.
    """
    ids = random_below(key, (count,), max(1, config.random_pool_size))
    if config.random_pool == "no_special":
        for special in config.special_token_ids:
            ids = ids + (ids >= special)
    return ids
