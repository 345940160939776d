"""The parameters of a model with another vocabulary.

The row of a new entry is the mean of the rows of its pieces (Gee et al. 2022, Fast Vocabulary Transfer), in the input
table and, if it is not tied, in the output table. The product of that row with a hidden state is the mean of those of
its pieces, and its bias does the rest. A piece's logit minus its log-frequency says how well the piece fits the
context. A new word shall fit as well as its pieces do on average, and be as likely as its own frequency demands, as
if the output layer had begun with log-frequencies (Meister et al. 2023, A Natural Bias for Language Generation
Models):

    bias of the word = mean of (bias of the piece - log count of the piece) + log count of the word

Counts have one added, so that no logarithm is of zero. Biases of entries that are kept do not change.

Without a text to count in, biases stand in for the logarithms, and the word counts as often as its rarest piece, which
is the most it can: its bias is the smallest of its pieces'.
"""

from dataclasses import dataclass, replace

import numpy as np

from mlm_jax.config.model import BertConfig
from mlm_jax.extension.origins import Origins
from mlm_jax.formats.model_folder import StoredModel, flatten_params, nest_params, vocabulary_leaves
from mlm_jax.text.tokenizer import Tokenizer

_BIAS, _POSITIONS = "head/bias", "encoder/embeddings/position"


@dataclass(frozen=True)
class TokenCounts:
    """Counts of the entries of two tokenizers in the same text."""

    old: np.ndarray
    """int64 `[entries of the old tokenizer]`"""
    new: np.ndarray
    """int64 `[entries of the new tokenizer]`"""


def with_vocabulary(
    model: StoredModel, tokenizer: Tokenizer, origins: Origins, counts: TokenCounts | None = None
) -> StoredModel:
    """Returns the model with `tokenizer` and the rows that `origins` describes, in the dtypes that it had.

    An entry without a known piece gets the mean of all entries (Hewitt 2021, Initializing New Word Embeddings for
    Pretrained Language Models). Rows that are kept are the same to the bit.
    """
    flat = flatten_params(model.params)
    num_entries = model.tokenizer.vocabulary_size
    for path, leaf in vocabulary_leaves(model.config, flat).items():
        flat[path] = (
            _biases(leaf, origins, counts, num_entries)
            if path == _BIAS
            else _rows(leaf, origins, num_entries)
        )
    config: BertConfig = replace(
        model.config,
        vocabulary_size=len(origins.kept),
        mask_dropout_id=None if model.config.mask_dropout_id is None else tokenizer.mask_token_id,
    )
    return replace(model, config=config, params=nest_params(flat), tokenizer=tokenizer)


def _rows(table: np.ndarray, origins: Origins, num_entries: int) -> np.ndarray:
    """Returns the rows of the new table: kept, or means of those of their pieces."""
    rows = table[np.maximum(origins.kept, 0)]
    everything = _mean(table[:num_entries])
    for row, pieces in origins.made.items():
        rows[row] = _mean(table[list(pieces)]) if pieces else everything
    return rows


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64).mean(axis=0).astype(rows.dtype)


def _biases(biases: np.ndarray, origins: Origins, counts: TokenCounts | None, num_entries: int) -> np.ndarray:
    """Returns the biases of the new entries; see the docstring of this file."""
    new = biases[np.maximum(origins.kept, 0)]
    wide = biases[:num_entries].astype(np.float64)
    fits = wide if counts is None else wide - np.log1p(counts.old)
    combined = np.min if counts is None else np.mean
    everything = combined(fits)
    for row, pieces in origins.made.items():
        value = combined(fits[list(pieces)]) if pieces else everything
        new[row] = value if counts is None else value + np.log1p(counts.new[row])
    return new


def with_padding_of(tokenizer: Tokenizer, model: StoredModel) -> StoredModel:
    """Returns the model with positions that count from the padding id of `tokenizer` + 1, if its positions do so.

    The rows before the first position are those that no text uses; new ones are zeros.
    """
    offset = tokenizer.pad_token_id + 1
    if model.config.position_offset in (0, offset):
        return model
    flat = flatten_params(model.params)
    used = flat[_POSITIONS][model.config.position_offset :]
    unused = np.zeros((offset, used.shape[1]), used.dtype)
    flat[_POSITIONS] = np.concatenate([unused, used])
    return replace(model, config=replace(model.config, position_offset=offset), params=nest_params(flat))
