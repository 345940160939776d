"""Keys and rows in; masked rows, positions, ids and weights out. Pure, jittable, and needs only jax and ids.

The mask of a row depends on (seed, epoch, example id, row content, config) and on nothing else: not on the batch
it travels in, the devices, the processes or the mesh. All that follows is integer arithmetic on threefry bits and
comparisons of float32 values that are never summed, so it is the same to the bit on every backend.

Every selectable position draws one random number, and the k smallest are selected. The laws differ only in k:

    "ceil"       k = min(ceil(float32(n) · float32(rate)), K)                 KerasHub inside tf.data
    "bernoulli"  k = min(how many numbers lie below rate · 2³¹, K)            Hugging Face; KerasHub, eager
    "bert"       k = min(K, n, max(1, round(rate · non-padding tokens)))      google-research/bert

with n selectable positions and K = mask_selection_length. The numbers are independent and uniform, so the k smallest
are a uniformly random subset without replacement, also among those that Bernoulli chose when K cuts them.

With `unit="whole_word"` or `"span"` k is a budget in tokens, and `mlm_jax.masking.words` says which words it is spent
on; all tokens of a word have one number. With `quota="document"` each document of a row has its own n and k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float32, Int, Integer, Key, UInt32

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.masking.counting import (
    WORD_BITS,
    count_bits,
    count_true,
    packed,
    position_of_rank,
    positions_of_smallest,
    smallest_groups,
)
from mlm_jax.masking.rates import SelectionTable, selection_table
from mlm_jax.masking.words import (
    Documents,
    Words,
    masked_in_documents,
    masked_in_row,
    starts_of_words,
    words_of,
)
from mlm_jax.threefry import fold_in, random_below, random_bits, random_bits_at, split

HostOrDevice = Array | np.ndarray

# Larger than every number, so that what cannot be selected comes last.
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
    key: Key[Array, "..."],
    token_ids: Integer[HostOrDevice, "*batch length"],
    config: MaskingConfig,
    law: SelectionTable | None = None,
    stage: int | Int[HostOrDevice, ""] = 0,
) -> MaskedTokens:
    """Select positions by the config's law and replace them by BERT's 80/10/10 rule (Devlin et al. 2018).

    One uniform number u decides each selected position: u < mask_token_rate gives the mask token, u <
    mask_token_rate + random_token_rate a random id, anything else leaves the token as it is.

    Args:
        key: typed keys (`jax.random.key`): one a row, shape [batch], or a single one, from which row keys are
            folded by row index; for a single row, shape [].
        token_ids: [length] or [batch, length], any integer dtype.
        config: static; give it to `jax.jit` as a static argument.
        law: replaces the config's rates: `selection_table` of a config that differs in rates alone, for rows of
            this length; by default the config's own. Traced, one compiled function serves many.
        stage: which of the law's, where the rate follows a schedule.

    Raises:
        ValueError: the shapes of key and token_ids, or of them and the law, do not belong together, or the ids are not
            integers.
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
        return _mask_row(key, token_ids, config, _at_stage(law, stage, config, token_ids))
    if token_ids.ndim != 2 or key.shape not in ((), token_ids.shape[:1]):
        raise ValueError(
            f"key {key.shape} and token_ids {token_ids.shape}: must be [] with [length], or [] or [batch] with "
            "[batch, length]"
        )
    if key.shape == ():
        key = jax.vmap(fold_in, in_axes=(None, 0))(key, jnp.arange(token_ids.shape[0]))
    law = _at_stage(law, stage, config, token_ids)
    return jax.vmap(_mask_row, in_axes=(0, 0, None, None))(key, token_ids, config, law)


def selectable_positions(
    token_ids: Int[HostOrDevice, "*batch length"], config: MaskingConfig
) -> Bool[Array, "*batch length"]:
    """True where a position may be selected; bool, shaped as `token_ids`."""
    unselectable = jnp.asarray(config.unselectable_token_ids, jnp.int32)
    return jnp.all(
        jnp.asarray(token_ids)[..., None] != jnp.expand_dims(unselectable, range(token_ids.ndim)), axis=-1
    )


def wanted_selections(
    keys: Key[Array, " batch"],
    token_ids: Integer[HostOrDevice, "batch length"],
    config: MaskingConfig,
    law: SelectionTable | None = None,
    stage: int | Int[HostOrDevice, ""] = 0,
) -> Int[Array, " batch"]:
    """How many positions of each row the law asks for, before `mask_selection_length` limits them.

    Of words and spans it is the budget, which those that fit need not use up. Under one jit with `mask_tokens` and the
    same keys it costs next to nothing: the numbers are the same.
    """
    token_ids = jnp.asarray(token_ids, jnp.int32)
    law = _at_stage(law, stage, config, token_ids)

    def wanted(key: Key[Array, ""], row: Int[Array, " length"]) -> Int[Array, ""]:
        selectable = selectable_positions(row, config)
        if config.quota == "document":
            return jnp.sum(_document_quotas(row, selectable, config, law))
        numbers = _numbers(split(key, 3)[0], words_of(row, selectable, config), selectable, config)
        return _wanted(numbers, row, selectable, config, law)

    return jax.vmap(wanted)(keys, token_ids)


def _at_stage(
    law: SelectionTable | None,
    stage: int | Int[HostOrDevice, ""],
    config: MaskingConfig,
    token_ids: Int[Array, "*batch length"],
) -> SelectionTable:
    """The numbers of one stage: `selections` without its first dimension."""
    length = token_ids.shape[-1]
    law = selection_table(config, length) if law is None else law
    shape = law.selections.shape
    if shape[1:] != (() if config.selection == "bernoulli" else (length + 1,)):
        raise ValueError(
            f"law.selections {shape}: must be of selection {config.selection!r} and {length} tokens"
        )
    return law._replace(selections=jnp.asarray(law.selections)[stage])


@jax.named_scope("mask_tokens")
def _mask_row(
    key: Key[Array, ""], token_ids: Int[Array, " length"], config: MaskingConfig, law: SelectionTable
) -> MaskedTokens:
    select_key, decide_key, draw_key = split(key, 3)
    positions = _select_positions(select_key, token_ids, config, law)
    length, slots = token_ids.shape[0], positions.shape[0]
    selected = positions < length
    original = jnp.where(selected, token_ids.at[positions].get(mode="clip"), 0)

    # The bits and the rounding of jax.random.uniform.
    u = (random_bits(decide_key, (slots,)) >> 9).astype(jnp.float32) * np.float32(2**-23)
    random_ids = _draw_token_ids(draw_key, slots, config)
    changed = jnp.where(u < law.changed_token_rate, random_ids, original)
    replacement = jnp.where(u < law.mask_token_rate, config.mask_token_id, changed)
    return MaskedTokens(
        token_ids=token_ids.at[positions].set(replacement, mode="drop"),
        mask_positions=jnp.where(selected, positions, 0),
        mask_ids=original,
        mask_weights=selected.astype(jnp.float32),
    )


def _select_positions(
    key: Key[Array, ""], token_ids: Int[Array, " length"], config: MaskingConfig, law: SelectionTable
) -> Int[Array, " K"]:
    """Selected positions, ascending; the slots left over hold `length`, which no position has."""
    length, slots = token_ids.shape[0], config.mask_selection_length
    selectable = selectable_positions(token_ids, config)
    words = words_of(token_ids, selectable, config)
    if config.quota == "document":
        wanted = _document_quotas(token_ids, selectable, config, law)
        # Those of the last documents are cut.
        budgets = jnp.clip(slots - (jnp.cumsum(wanted) - wanted), 0, wanted)
        documents = Documents(packed(_document_ends(token_ids, config)), budgets)
        chosen = masked_in_documents(key, words, documents, length, config)
        return jnp.minimum(position_of_rank(chosen, jnp.arange(slots)), length)

    numbers = _numbers(key, words, selectable, config)
    count = jnp.minimum(_wanted(numbers, token_ids, selectable, config, law), slots)
    if config.unit == "token":
        return positions_of_smallest(numbers, count, slots)
    chosen = jnp.zeros_like(words.starts)
    if config.unit == "whole_word":
        # As many as fit one after the other; the loop goes on with the words after one that does not.
        chosen = smallest_groups(numbers, count)
        if config.selection == "bernoulli":
            words = words._replace(starts=words.starts & packed(numbers < law.selections))
    chosen = masked_in_row(fold_in(key, 0), words, chosen, count - count_bits(chosen), length, config)
    return jnp.minimum(position_of_rank(chosen, jnp.arange(slots)), length)


def _numbers(
    key: Key[Array, ""], words: Words, selectable: Bool[Array, " length"], config: MaskingConfig
) -> UInt32[Array, " length"]:
    """A random number of `WORD_BITS` bits a position, one for all tokens of a word; larger where not selectable."""
    if config.unit == "whole_word":
        bits = random_bits_at(key, starts_of_words(words, selectable.shape[0]))
    else:
        bits = random_bits(key, selectable.shape)
    return jnp.where(selectable, bits >> (32 - WORD_BITS), _NEVER)


def _wanted(
    numbers: UInt32[Array, " length"],
    token_ids: Int[Array, " length"],
    selectable: Bool[Array, " length"],
    config: MaskingConfig,
    law: SelectionTable,
) -> Int[Array, ""]:
    """How many positions of a row the law asks for: the k of the module's table before K limits it."""
    if config.selection == "bernoulli":
        return count_true(numbers < law.selections)
    if config.selection == "ceil":
        return law.selections[count_true(selectable)]
    real = count_true(token_ids != config.padding_token_id)
    return jnp.minimum(law.selections[real], count_true(selectable))


def _document_ends(token_ids: Int[Array, " length"], config: MaskingConfig) -> Bool[Array, " length"]:
    """The last token of each document; the row's last token ends one, too."""
    return jnp.equal(token_ids, jnp.int32(config.document_end_id)).at[-1].set(True)


def _document_quotas(
    token_ids: Int[Array, " length"],
    selectable: Bool[Array, " length"],
    config: MaskingConfig,
    law: SelectionTable,
) -> Int[Array, " length"]:
    """How many positions of each document the law asks for, where the document ends; 0 elsewhere."""
    ends = _document_ends(token_ids, config)

    def of_each(counted: Bool[Array, " length"]) -> Int[Array, " length"]:
        upto = jnp.cumsum(counted.astype(jnp.int32))
        return upto - jnp.pad(jax.lax.cummax(jnp.where(ends, upto, 0))[:-1], (1, 0))

    count = of_each(selectable)
    if config.selection == "ceil":
        wanted = law.selections[count]
    else:
        wanted = jnp.minimum(law.selections[of_each(token_ids != config.padding_token_id)], count)
    return jnp.where(ends, wanted, 0)


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
