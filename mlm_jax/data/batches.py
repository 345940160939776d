"""A step number in, this process's rows out: which documents make a row, in which order, read ahead.

The data of a step is a pure function of (shards, seed, step). Training reads an endless stream of positions; a
position's epoch is its quotient by the number of rows, and its row the value of that epoch's keyed permutation. So
a batch may cross the end of an epoch, nothing is dropped there, and a checkpoint holds no iterator state.

    packed     [CLS] … a document … [SEP] … the next … [SEP]     rows cut from the shard's stream of documents
    document   [CLS] … one document … [SEP] [PAD] …              a long document goes on in a row of its own

Both keep every token of every document. Only the last row of a shard, and of a document, is padded.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data.permutation import permute
from mlm_jax.data.row_index import row_index, runs
from mlm_jax.data.shards import TokenStore
from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer

_MAX_ROWS = 2**32


class Batch(NamedTuple):
    """Rows of one step, on the host (NumPy) or on the devices (JAX).

    The padding mask is `token_ids != padding id`, made on the device; all tokens of a row are of segment 0.
    """

    token_ids: Any
    """int32 [batch, length], with [CLS], [SEP] and padding."""
    example_ids: Any
    """uint32 [batch]: the row's number in the data, whatever the order."""
    epochs: Any
    """uint32 [batch]."""


class Rows:
    """All rows of a token store, in the order of its documents; any of them can be read at once.

    Raises:
        InputError: the tokenizer is not the one the store was made with, or the store holds more than 2**32 rows.
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: DataConfig) -> None:
        if tokenizer.fingerprint != store.tokenizer_fingerprint:
            raise InputError(
                f"tokenizer {tokenizer.fingerprint[:12]}: the data were prepared with "
                f"{store.tokenizer_fingerprint[:12]}"
            )
        self.sequence_length = config.sequence_length
        self._tokenizer = tokenizer
        self._shards = store.shards
        self._index = row_index(store, config)
        self.num_rows = self._index.num_rows
        if self.num_rows > _MAX_ROWS:
            raise InputError(
                f"data: {self.num_rows:,} rows of {self.sequence_length} tokens: must be at most 2**32 = "
                f"{_MAX_ROWS:,} rows, which example ids tell apart; {_fewer_rows(store, config)}"
            )
        if self.num_rows == 0:
            raise InputError("data: no row: must hold a token")

    def read(self, row_numbers: np.ndarray) -> np.ndarray:
        """Rows as int32 [n, sequence_length]; `row_numbers` int [n] in [0, num_rows)."""
        order = np.argsort(row_numbers)
        places = self._index.locate(row_numbers[order])
        width = self.sequence_length - 2
        rows = np.empty((len(row_numbers), self.sequence_length), np.int32)
        for shard, own in runs(places.shards):
            rows[order[own], 1:-1] = self._shards[shard].token_windows(places.starts[own], width)
        lengths = np.empty_like(places.lengths)
        lengths[order] = places.lengths
        return self._frame(rows, lengths)

    def _frame(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[CLS] body [SEP] and padding. A body that ends in its document's [SEP] is not closed by a second one."""
        tokenizer, width = self._tokenizer, self.sequence_length - 2
        rows[:, 0] = tokenizer.cls_token_id
        rows[:, -1] = tokenizer.pad_token_id
        short = np.flatnonzero(lengths < width)
        if short.size:
            columns = np.arange(1, self.sequence_length)[None]
            rows[short, 1:] = np.where(
                columns <= lengths[short, None], rows[short, 1:], tokenizer.pad_token_id
            )
        every = np.arange(len(rows))
        unclosed = rows[every, lengths] != tokenizer.sep_token_id
        rows[every[unclosed], lengths[unclosed] + 1] = tokenizer.sep_token_id
        return rows


def _fewer_rows(store: TokenStore, config: DataConfig) -> str:
    if config.packing == "document":
        return 'take longer ones, data.packing = "packed", or data of fewer tokens'
    # Each shard ends with a row that may not be full.
    body_length = -(-store.num_tokens // (_MAX_ROWS - len(store.shards)))
    return f"data.sequence_length = {body_length + 2} would do, or data of fewer tokens"


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of a run: `batch(step)` for any step, `from_step(step)` to read on from there.

    Of every batch only the local rows are read, by default all.
    """

    rows: Rows
    sizes: BatchSizes
    seed: int
    local_rows: Callable[[int], np.ndarray] = np.arange
    """The size of a batch to places in it, int [n], ascending."""

    def epoch(self, step: int) -> float:
        """Passes over the data made before `step`."""
        return self.sizes.examples(step) / self.rows.num_rows

    def batch(self, step: int) -> Batch:
        """The local rows of step `step`."""
        positions = self.sizes.examples(step) + self.local_rows(self.sizes.size(step))
        epochs, places = np.divmod(positions, self.rows.num_rows)
        row_numbers = np.empty_like(positions)
        for epoch in np.unique(epochs):
            within = epochs == epoch
            row_numbers[within] = permute(places[within], self.rows.num_rows, self.seed, int(epoch))
        return Batch(self.rows.read(row_numbers), row_numbers.astype(np.uint32), epochs.astype(np.uint32))

    def from_step(self, first: int, last: int, prefetch: int) -> Iterator[Batch]:
        """The batches of steps first … last - 1, `prefetch` of them read ahead by Grain's threads."""
        # Imported here because grain imports jax, which nothing else in this room needs.
        import grain  # noqa: PLC0415

        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
        return iter(grain.MapDataset.range(first, last).map(self.batch).to_iter_dataset(options))


def evaluation_batches(
    rows: Rows, batch_size: int, limit: int | None, padding_id: int, local_rows: np.ndarray | None = None
) -> Iterator[Batch]:
    """Every row once, in order, in batches of `batch_size`; rows of nothing but padding fill the last one.

    `limit` batches at most; where it leaves rows out, those taken are spread evenly over the data. Of every batch only
    the rows at the places `local_rows`, int [n], ascending, are read, by default all.
    """
    total = rows.num_rows if limit is None else min(rows.num_rows, limit * batch_size)
    row_numbers = np.arange(total) * rows.num_rows // total
    local_rows = np.arange(batch_size) if local_rows is None else local_rows
    for first in range(0, total, batch_size):
        places = first + local_rows
        chosen = row_numbers[places[places < total]]
        spare = len(local_rows) - len(chosen)
        token_ids = np.pad(rows.read(chosen), ((0, spare), (0, 0)), constant_values=padding_id)
        yield Batch(
            token_ids, np.pad(chosen, (0, spare)).astype(np.uint32), np.zeros(len(local_rows), np.uint32)
        )
