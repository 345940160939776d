"""Public masking functions: from keys and rows to masked rows, positions, ids and weights. Pure and jittable.

The mask of a row depends only on (seed, epoch, example id, row content, config), not on its batch, the devices, the
processes or the mesh. Masking uses integer arithmetic on threefry bits and comparisons of float32 values that are never
summed, so every backend computes the same bits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float32, Int, Integer, Key

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.masking.rates import HostOrDevice, SelectionTable, selection_table
from mlm_jax.masking.replacement import replacement_ids
from mlm_jax.masking.selection import select_positions
from mlm_jax.threefry import fold_in, split


class MaskedTokens(NamedTuple):
    """Rows after masking. K = mask_selection_length, derived if it is None; batch dimensions as in the input."""

    token_ids: Int[Array, "*batch length"]
    """Rows after replacement, int32."""
    mask_positions: Int[Array, "*batch K"]
    """Selected positions, strictly ascending, padded with 0, int32."""
    mask_ids: Int[Array, "*batch K"]
    """Original ids at those positions, padded with 0, int32."""
    mask_weights: Float32[Array, "*batch K"]
    """1 for a selected position, 0 for padding."""


def example_keys(
    seed: int | Integer[HostOrDevice, ""],
    epoch: int | Integer[HostOrDevice, " batch"] | Sequence[int],
    example_ids: Integer[HostOrDevice, " batch"] | Sequence[int],
) -> Key[Array, " batch"]:
    """Returns one masking key per example, a function of (seed, epoch, example id).

    Args:
        seed: in [0, 2**32).
        epoch: in [0, 2**32): one for all examples, or one per example, for a batch that spans two epochs.
        example_ids: in [0, 2**32).

    Raises:
        ValueError: a number is not an integer or, on the host, outside its range; or `example_ids` does not have one
            dimension. The integers of a JAX array are taken modulo 2**32.
    """
    seed, epoch = _uint32(seed, "seed"), _uint32(epoch, "epoch")
    ids = jnp.asarray(_uint32(example_ids, "example_ids"))
    if ids.ndim != 1:
        raise ValueError(f"example_ids has shape {ids.shape}: must be [batch]")
    if np.shape(epoch) not in ((), ids.shape):
        raise ValueError(f"epoch has shape {np.shape(epoch)}: must be [] or {ids.shape}, as example_ids")
    epochs = jnp.broadcast_to(jnp.asarray(epoch), ids.shape)
    stream = purpose_key(seed, Purpose.MASKING)
    return jax.vmap(lambda e, i: fold_in(fold_in(stream, e), i))(epochs, ids)


def _uint32(numbers: Any, name: str) -> HostOrDevice:
    """Returns numbers as uint32. Raises ValueError if they are not integers or, on the host, out of range."""
    if not isinstance(numbers, Array):
        numbers = np.asarray(numbers)
        if not numbers.size:
            numbers = numbers.astype(np.uint32)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {numbers.dtype}: must be integers")
    if isinstance(numbers, np.ndarray):
        outside = numbers[(numbers < 0) | (numbers >= 2**32)]
        if outside.size:
            raise ValueError(f"{name}: {outside[0]} is not in [0, 2**32)")
    return numbers.astype(np.uint32)


def mask_tokens(
    key: Key[Array, "..."],
    token_ids: Integer[HostOrDevice, "*batch length"] | Sequence[Any],
    config: MaskingConfig,
    table: SelectionTable | None = None,
    stage: int | Int[HostOrDevice, ""] = 0,
    continues_word: Bool[HostOrDevice, "..."] | Sequence[Any] | None = None,
) -> MaskedTokens:
    """Selects positions by the config's rule and replaces their tokens by BERT's 80/10/10 rule (Devlin et al. 2018).

    Args:
        key: typed keys (`jax.random.key`): one per row, shape [batch], or a single key, shape [], into which the index
            of each row is folded; for a single row, shape [].
        token_ids: [length] or [batch, length], any integer dtype; or a list of rows or a RaggedTensor, padded at the
            end of each row to the longest one with `config.padding_token_id`. Padding does not change a row's mask.
        config: static; pass it to `jax.jit` as a static argument.
        table: overrides the config's rates: the `selection_table` of a config that differs only in its rates, for rows
            of this length. Traced, so that one compiled function serves many rates.
        stage: stage of the table to use, if the rate follows a schedule.
        continues_word: with `config.words_from_data`, bool of the shape of token_ids, or a list of rows of the same
            lengths; True for tokens of the same word as the token before; the values at special tokens, and after them,
            have no effect.

    Raises:
        ValueError: `token_ids` are not integers, there is no token, a list or NumPy array has an id outside the
            vocabulary, rows need padding that could be masked, `key` is not a typed key, `config` is not a
            MaskingConfig, the table has no such stage, the shapes of key, token_ids, table and continues_word do not
            match, or continues_word is missing or has no use.
    """
    return mask_and_count(key, token_ids, config, table, stage, continues_word)[0]


def mask_and_count(
    key: Key[Array, "..."],
    token_ids: Integer[HostOrDevice, "*batch length"] | Sequence[Any],
    config: MaskingConfig,
    table: SelectionTable | None = None,
    stage: int | Int[HostOrDevice, ""] = 0,
    continues_word: Bool[HostOrDevice, "..."] | Sequence[Any] | None = None,
) -> tuple[MaskedTokens, Int[Array, "*batch"]]:
    """Returns the result of `mask_tokens`, and the number of positions that the rule requests in each row.

    This number is not limited by `mask_selection_length`. For words and spans it is a budget, which may not be used up.
    """
    if not isinstance(config, MaskingConfig):
        raise ValueError(f"config is a {type(config).__name__}: must be a MaskingConfig")
    token_ids = jnp.asarray(_as_array(token_ids, config))
    if not token_ids.size:
        raise ValueError(f"token_ids has shape {token_ids.shape}: must have at least one token")
    if not jnp.issubdtype(token_ids.dtype, jnp.integer):
        raise ValueError(f"token_ids has dtype {token_ids.dtype}: must be an integer dtype")
    if not isinstance(key, Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        found = " ".join(str(getattr(key, "dtype", key)).split())
        raise ValueError(f"key is {found}: must be a typed key, from jax.random.key or example_keys")
    if token_ids.ndim not in (1, 2):
        raise ValueError(f"token_ids has shape {token_ids.shape}: must be [length] or [batch, length]")
    token_ids = token_ids.astype(jnp.int32)
    numbers = _stage_of_table(table, stage, config, token_ids.shape[-1])
    words = _checked_words(continues_word, token_ids.shape, config)
    if token_ids.ndim == 1 and key.shape == ():
        return _mask_row(key, token_ids, config, numbers, words)
    if token_ids.ndim == 1 or key.shape not in ((), token_ids.shape[:1]):
        raise ValueError(
            f"key {key.shape} and token_ids {token_ids.shape}: must be [] with [length], or [] or [batch] with "
            "[batch, length]"
        )
    if key.shape == ():
        key = jax.vmap(fold_in, in_axes=(None, 0))(key, jnp.arange(token_ids.shape[0]))
    axes = (0, 0, None, None, None if words is None else 0)
    return jax.vmap(_mask_row, in_axes=axes)(key, token_ids, config, numbers, words)


def _checked_words(
    continues_word: Any, shape: tuple[int, ...], config: MaskingConfig
) -> Bool[Array, "..."] | None:
    """Raises ValueError if continues_word is missing, of another shape than token_ids, or has no use."""
    if not config.words_from_data:
        if continues_word is not None:
            raise ValueError("continues_word: must be None unless config.words_from_data is True")
        return None
    if continues_word is None:
        raise ValueError("continues_word is None: must be given, because config.words_from_data is True")
    if isinstance(continues_word, list | tuple):
        continues_word = _padded_words(continues_word, shape[-1])
    if np.shape(continues_word) != shape:
        raise ValueError(
            f"continues_word has shape {np.shape(continues_word)}: must be {shape}, as token_ids"
        )
    # The numbers of words, as tokenizers' `word_ids`, would be other words.
    if continues_word.dtype != bool:
        raise ValueError(f"continues_word has dtype {continues_word.dtype}: must be bool")
    return jnp.asarray(continues_word)


def _padded_words(rows: Sequence[Any], length: int) -> HostOrDevice:
    """Returns a row, or rows of different lengths, as an array; rows shorter than `length` end in False."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(rows)):
        return jnp.asarray(rows)
    arrays = [np.asarray(row) for row in rows]
    if all(array.ndim == 1 and array.dtype == bool and len(array) <= length for array in arrays):
        arrays = [np.pad(array, (0, length - len(array))) for array in arrays]
    try:
        return np.stack(arrays)
    except ValueError as error:
        raise ValueError("continues_word: must have as many values in a row as token_ids") from error


def _as_array(token_ids: Any, config: MaskingConfig) -> Any:
    """Returns rows of the host as one array, with rows of different lengths padded, and anything else unchanged.

    Raises:
        ValueError: a row is not a list of ids of the vocabulary, or cannot be padded.
    """
    if hasattr(token_ids, "to_list"):
        # A RaggedTensor of TensorFlow.
        token_ids = token_ids.to_list()
    if not isinstance(token_ids, list | tuple) and not hasattr(token_ids, "shape"):
        raise ValueError(
            f"token_ids is a {type(token_ids).__name__}: must be an integer array or a list of rows of token ids, "
            "which Tokenizer.encode makes of text"
        )
    if isinstance(token_ids, np.ndarray):
        if token_ids.dtype == object:
            raise ValueError(
                "token_ids is a NumPy array of objects: must be an integer array, or a list of rows of integers"
            )
        _check_ids(token_ids, "token_ids", config)
    if not isinstance(token_ids, list | tuple):
        return token_ids
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(token_ids)):
        if len({np.shape(row)[:1] if isinstance(row, Array) else len(row) for row in token_ids}) > 1:
            raise ValueError("token_ids: rows of different lengths: must be padded before jax.jit")
        return token_ids
    if token_ids and all(isinstance(item, int | np.integer) for item in token_ids):
        return _row_of(token_ids, "token_ids", config)
    return _padded([_row_of(row, f"token_ids: row {n}", config) for n, row in enumerate(token_ids)], config)


def _row_of(row: Any, where: str, config: MaskingConfig) -> np.ndarray:
    try:
        array = np.asarray(row)
    except ValueError as error:
        raise ValueError(f"{where} has lists of different lengths: must be a list of integers") from error
    array = array.astype(np.int32) if array.shape == (0,) else array
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{where} has shape {array.shape} and dtype {array.dtype}: must be a list of integers"
        )
    _check_ids(array, where, config)
    return array


def _check_ids(ids: np.ndarray, where: str, config: MaskingConfig) -> None:
    outside = ids[(ids < 0) | (ids >= config.vocabulary_size)] if ids.dtype.kind in "iu" else ids[:0]
    if outside.size:
        raise ValueError(f"{where} has the id {outside[0]}: must be in [0, {config.vocabulary_size})")


def _padded(rows: Sequence[np.ndarray], config: MaskingConfig) -> np.ndarray:
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 and config.padding_token_id not in config.unselectable_token_ids:
        raise ValueError(
            f"token_ids: rows of {min(lengths)} to {max(lengths)} tokens are padded with padding_token_id = "
            f"{config.padding_token_id}: must be one of the unselectable_token_ids"
        )
    padded = np.full((len(rows), max(lengths, default=0)), config.padding_token_id, np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _stage_of_table(table: Any, stage: Any, config: MaskingConfig, length: int) -> SelectionTable:
    """Returns the table of one stage: `selections` without its first dimension."""
    table = selection_table(config, length) if table is None else table
    if not isinstance(table, SelectionTable):
        raise ValueError(f"table is a {type(table).__name__}: must be a SelectionTable or None")
    shape = table.selections.shape
    if not isinstance(stage, Tracer):
        if np.shape(stage) or not np.issubdtype(np.asarray(stage).dtype, np.integer):
            raise ValueError(f"stage = {stage!r}: must be a whole number")
        stage = int(stage)
    # JAX would take the last one.
    if isinstance(stage, int) and not 0 <= stage < shape[0]:
        raise ValueError(f"stage = {stage}: must be in [0, {shape[0]}), the stages of the table")
    if shape[1:] != (() if config.selection == "bernoulli" else (length + 1,)):
        raise ValueError(
            f"table.selections has shape {shape}: must be selection_table of a config with selection "
            f"{config.selection!r}, for rows of {length} tokens"
        )
    return table._replace(selections=jnp.asarray(table.selections)[stage])


@jax.named_scope("mask_tokens")
def _mask_row(
    key: Key[Array, ""],
    token_ids: Int[Array, " length"],
    config: MaskingConfig,
    table: SelectionTable,
    continues_word: Bool[Array, " length"] | None,
) -> tuple[MaskedTokens, Int[Array, ""]]:
    select_key, decide_key, draw_key = split(key, 3)
    positions, wanted = select_positions(select_key, token_ids, config, table, continues_word)
    selected = positions < token_ids.shape[0]
    original = jnp.where(selected, token_ids.at[positions].get(mode="clip"), 0)
    replacement = replacement_ids(decide_key, draw_key, original, config, table)
    masked = MaskedTokens(
        token_ids=token_ids.at[positions].set(replacement, mode="drop"),
        mask_positions=jnp.where(selected, positions, 0),
        mask_ids=original,
        mask_weights=selected.astype(jnp.float32),
    )
    return masked, wanted
