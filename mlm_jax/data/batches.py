"""Rows of any step: division of documents into rows, order of rows, and reading ahead.

The data of a step is a pure function of (shards, seed, step). Training reads an endless stream of positions: position
p belongs to epoch p // num_rows, and `order.py` permutes the rows of each epoch. A batch may therefore span two epochs,
no row is dropped, and a checkpoint holds no iterator state.

    packed     [CLS] … a document … [SEP] … the next … [SEP]     rows cut from a shard's stream of documents
    document   [CLS] … one document … [SEP] [PAD] …              a long document continues in further rows

Both keep every token of every document. Only the last row of a shard (packed) or of a document is padded.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data.fetch_ahead import FetchAhead
from mlm_jax.data.order import GlobalOrder, WindowedOrder, rows_per_block
from mlm_jax.data.packing import Places, row_index, runs
from mlm_jax.data.shards import TokenStore
from mlm_jax.errors import InputError, RunError
from mlm_jax.text.tokenizer import Tokenizer

_MAX_ROWS = 2**32


class Batch(NamedTuple):
    """Rows of one step, on the host (NumPy) or on the devices (JAX).

    The padding mask, `token_ids != padding id`, is computed on the device. All tokens belong to segment 0.
    """

    token_ids: Any
    """int32 [batch, length], including [CLS], [SEP] and padding."""
    example_ids: Any
    """uint32 [batch]: index of the row in the data, independent of the order in which rows are read."""
    epochs: Any
    """uint32 [batch]: epoch in which the row is read, from 0."""
    continues_word: Any = None
    """bool [batch, length]: True for tokens of the same word as the token before. None unless masking needs it."""


class Rows:
    """All rows of a token store, in the order of its documents, with random access.

    Raises:
        InputError: the store was made with another tokenizer, or it has no rows or more than 2**32 rows.
    """

    def __init__(self, store: TokenStore, tokenizer: Tokenizer, config: DataConfig) -> None:
        if tokenizer.fingerprint != store.tokenizer_fingerprint:
            raise InputError(
                f"tokenizer {tokenizer.fingerprint[:12]}: the data were prepared with "
                f"{store.tokenizer_fingerprint[:12]}"
            )
        self.sequence_length = config.sequence_length
        self.tokenizer = tokenizer
        self._shards, self._vocabulary_size = store.shards, store.vocabulary_size
        self._has_words, self._cache = store.has_words, store.cache
        self._index = row_index(store, config)
        self.num_rows = self._index.num_rows
        if self.num_rows > _MAX_ROWS:
            raise InputError(
                f"data: {self.num_rows:,} rows of {self.sequence_length} tokens: must be at most 2**32 = "
                f"{_MAX_ROWS:,} rows, the number of example ids; {_fewer_rows(store, config)}"
            )
        if self.num_rows == 0:
            raise InputError("data: no rows; expected at least one token")
        self._block_rows = rows_per_block(self.num_rows, store.token_bytes)
        self._windowed = config.order == "windowed"

    def order(self, seed: int) -> GlobalOrder | WindowedOrder:
        """Returns the order in which training reads the rows."""
        if self._windowed:
            return WindowedOrder(self.num_rows, seed, self._block_rows)
        return GlobalOrder(self.num_rows, seed)

    def fetch_ahead(
        self, order: GlobalOrder | WindowedOrder, stop: int, *, with_words: bool
    ) -> FetchAhead | None:
        """Returns what fetches the rows of the next steps, up to position `stop`; None if no data are in pieces."""
        if self._cache is None or isinstance(order, GlobalOrder):
            return None
        return FetchAhead(order, self._index, self._shards, self._cache, stop, with_words=with_words)

    def read(self, row_numbers: np.ndarray) -> np.ndarray:
        """Returns rows as int32 [n, sequence_length]; `row_numbers` is int [n] in [0, num_rows).

        Raises:
            RunError: a shard is damaged: it has ids beyond the vocabulary or offsets beyond its end. Or a part of a
                remote one could not be downloaded.
        """
        order, places, width = self._places(row_numbers)
        rows = np.empty((len(row_numbers), self.sequence_length), np.int32)
        if self._cache is not None:
            for shard, own in runs(places.shards):
                self._shards[shard].request(places.starts[own], width)
        for shard, own in runs(places.shards):
            ids = self._shards[shard].token_windows(places.starts[own], width)
            self._shards[shard].check_ids(ids, places.starts[own], self._vocabulary_size)
            rows[order[own], 1:-1] = ids
        lengths = np.empty_like(places.lengths)
        lengths[order] = places.lengths
        return self._frame(rows, lengths)

    def read_words(self, row_numbers: np.ndarray) -> np.ndarray:
        """Returns bool [n, sequence_length]: True for tokens of the same word as the token before.

        Only meaningful between tokens of text.

        Raises:
            InputError: see `require_words`.
        """
        self.require_words("data")
        order, places, width = self._places(row_numbers)
        words = np.zeros((len(row_numbers), self.sequence_length), bool)
        if self._cache is not None:
            for shard, own in runs(places.shards):
                self._shards[shard].request_words(places.starts[own], width)
        for shard, own in runs(places.shards):
            words[order[own], 1:-1] = self._shards[shard].word_windows(places.starts[own], width)
        return words

    def require_words(self, where: str) -> None:
        """Raises InputError, which begins with `where`, if the data were prepared without their words."""
        if not self._has_words:
            raise InputError(
                f"{where}: prepared by a version that did not store where the words of a {self.tokenizer.kind} "
                "tokenizer begin: must be prepared again, into another folder, for masking.unit other than 'token'"
            )

    def _places(self, row_numbers: np.ndarray) -> tuple[np.ndarray, Places, int]:
        """Returns the order of the rows in the shards, their places in this order, and the length of a body."""
        order = np.argsort(row_numbers)
        return order, self._index.locate(row_numbers[order]), self.sequence_length - 2

    def _frame(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Adds [CLS], [SEP] and padding to the bodies, in place. A body that ends in [SEP] gets no other [SEP]."""
        tokenizer, width = self.tokenizer, self.sequence_length - 2
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
        return 'use a larger data.sequence_length, data.packing = "packed" or fewer tokens'
    # The last row of each shard may be partly empty.
    body_length = -(-store.num_tokens // (_MAX_ROWS - len(store.shards)))
    return f"use data.sequence_length = {body_length + 2} or fewer tokens"


@dataclass(frozen=True)
class TrainingBatches:
    """Batches of a run: `batch` reads one step, `from_step` reads consecutive steps ahead of time.

    Only the local rows of each batch are read, by default all of them.
    """

    rows: Rows
    sizes: BatchSizes
    seed: int
    local_rows: Callable[[int], np.ndarray] = np.arange
    """Maps the size of a batch to the positions in it that this process reads, int [n], ascending."""
    with_words: bool = False
    """True if the batches have `continues_word`."""

    def epoch(self, step: int) -> float:
        """Returns the number of passes over the data before `step`."""
        return self.sizes.examples(step) / self.rows.num_rows

    def batch(self, step: int) -> Batch:
        """Returns the local rows of `step`."""
        return self._read(self._positions(step))

    def from_step(self, first: int, last: int, prefetch: int) -> Iterator[Batch]:
        """Yields the batches of steps `first` to `last - 1`; Grain's threads read `prefetch` of them ahead.

        The data of remote rows in windowed order are fetched even earlier.
        """
        # Imported here because grain imports jax, which nothing else in this room needs.
        import grain  # noqa: PLC0415

        stop = self.sizes.examples(last)
        with self.rows.fetch_ahead(self._order, stop, with_words=self.with_words) or nullcontext() as ahead:

            def batch(step: int) -> Batch:
                positions = self._positions(step)
                read = self._read(positions)
                # Only now, so that the first rows need not wait for later ones.
                if ahead is not None:
                    ahead.advance(positions)
                return read

            options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
            try:
                yield from grain.MapDataset.range(first, last).map(batch).to_iter_dataset(options)
            except (InputError, RunError) as error:
                # Grain adds lines about its traceback to the message.
                raise type(error)(str(error).partition("\n")[0]) from error

    @cached_property
    def _order(self) -> GlobalOrder | WindowedOrder:
        return self.rows.order(self.seed)

    def _positions(self, step: int) -> np.ndarray:
        """Returns the positions of the local rows of `step`, int64 [n]."""
        size = self.sizes.size(step)
        return self._order.arranged(self.sizes.examples(step) + np.arange(size))[self.local_rows(size)]

    def _read(self, positions: np.ndarray) -> Batch:
        epochs, row_numbers = self._order.rows(positions)
        return Batch(
            self.rows.read(row_numbers),
            row_numbers.astype(np.uint32),
            epochs.astype(np.uint32),
            self.rows.read_words(row_numbers) if self.with_words else None,
        )


def evaluation_batches(
    rows: Rows,
    batch_size: int,
    limit: int | None,
    padding_id: int,
    local_rows: np.ndarray | None = None,
    *,
    with_words: bool = False,
) -> Iterator[Batch]:
    """Yields every row once, in order, in batches of `batch_size`; rows of padding complete the last batch.

    `limit` is the maximum number of batches. If it excludes some rows, the others are spread evenly over the data. Only
    the rows at positions `local_rows`, int [n], ascending, of each batch are read, by default all of them. With
    `with_words` the batches have `continues_word`.
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
            token_ids,
            np.pad(chosen, (0, spare)).astype(np.uint32),
            np.zeros(len(local_rows), np.uint32),
            np.pad(rows.read_words(chosen), ((0, spare), (0, 0))) if with_words else None,
        )
