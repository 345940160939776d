"""Checks that a data set has tokens that can be masked; without them, a model would learn nothing at a loss of 0."""

from collections.abc import Iterator

import jax
import numpy as np

from mlm_jax.config.masking import MaskingConfig
from mlm_jax.data.batches import Rows
from mlm_jax.errors import InputError
from mlm_jax.masking.masking import example_keys, mask_tokens

_ROWS = 256
# Words are compared with the budgets of this many rows; token ids, which is fast, are read to the end.
_ROWS_OF_WORDS = 1 << 16


def check_maskable(rows: Rows, masking: MaskingConfig, where: str) -> None:
    """Reads rows in order, up to the first with a token that the rule can mask; `where` names the data in the error.

    Raises:
        InputError: there is no such row: all tokens are special or unknown, or every word exceeds the number of tokens
            to mask in its row. Or the rule masks words, and the data were prepared without them.
        RunError: a shard is damaged.
    """
    if masking.words_from_data:
        rows.require_words(where)
    unselectable, words_read = np.array(masking.unselectable_token_ids), 0
    for numbers, token_ids in _chunks(rows):
        if np.isin(token_ids, unselectable).all():
            continue
        # The rules for single tokens mask one wherever there is one.
        if masking.unit == "token" or _masks_any(rows, numbers, token_ids, masking):
            return
        words_read += len(numbers)
        if words_read >= _ROWS_OF_WORDS:
            break
    if words_read:
        raise InputError(
            f"{where}: no word is short enough to be masked: masking.unit = {masking.unit!r} masks at most "
            f"{masking.mask_selection_rate:.6g} of the tokens of a row or document, and only whole words; use 'token', "
            "longer rows or a higher rate"
        )
    raise InputError(
        f"{where}: no token can be masked: its {rows.num_rows:,} rows have only special and unknown tokens; prepare "
        "the text with a tokenizer that was trained on such text"
    )


def unknown_share(rows: Rows) -> float:
    """Returns the share of unknown tokens among the tokens of the first rows that stand for text, in [0, 1]."""
    tokenizer = rows.tokenizer
    token_ids = rows.read(np.arange(min(rows.num_rows, _ROWS)))
    unknown = int(np.count_nonzero(token_ids == tokenizer.unknown_token_id))
    known = int(np.count_nonzero(~np.isin(token_ids, tokenizer.special_token_ids)))
    return unknown / max(1, unknown + known)


def _chunks(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields numbers of rows, int [n], and the rows, int32 [n, length]."""
    for first in range(0, rows.num_rows, _ROWS):
        numbers = np.arange(first, min(first + _ROWS, rows.num_rows))
        yield numbers, rows.read(numbers)


def _masks_any(rows: Rows, numbers: np.ndarray, token_ids: np.ndarray, masking: MaskingConfig) -> bool:
    spare = _ROWS - len(numbers)
    padded = np.pad(token_ids, ((0, spare), (0, 0)), constant_values=masking.padding_token_id)
    words = np.pad(rows.read_words(numbers), ((0, spare), (0, 0))) if masking.words_from_data else None
    keys = example_keys(0, 0, np.pad(numbers, (0, spare)))
    masked = _masked(keys, padded, masking, continues_word=words)
    return bool(np.asarray(masked.mask_weights).any())


_masked = jax.jit(mask_tokens, static_argnums=2)
