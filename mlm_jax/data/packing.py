"""Cuts shards into rows: maps a row number to its shard and to the position of its body in the shard's tokens.

Nothing is stored: `batches.py` reads the tokens there and adds the special ones.

The locations of packed rows follow from the number of tokens in each shard. If each document starts a row, the number
of rows before a document depends on the lengths of all documents before it. These rows are counted once, and the count
is kept for every k-th document. k is 1 for up to 2**24 documents; for more, the counts are cached in a memory-mapped
file.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlm_jax.config import DataConfig
from mlm_jax.corpus.progress import track
from mlm_jax.data.shards import Shard, TokenStore
from mlm_jax.files.atomic import new_file, remove_abandoned
from mlm_jax.files.home import home

_MAX_COUNTS = 1 << 24


class Places(NamedTuple):
    """Locations of the bodies of n rows."""

    shards: np.ndarray
    """int64 [n], index of the shard."""
    starts: np.ndarray
    """int64 [n], index of the first token in the shard."""
    lengths: np.ndarray
    """int64 [n], number of tokens; at most the body length."""


def row_index(store: TokenStore, config: DataConfig) -> "RowIndex":
    """Returns the index of all rows of a store."""
    body_length = config.sequence_length - 2
    return (
        PackedRows(store.shards, body_length)
        if config.packing == "packed"
        else DocumentRows(store, body_length)
    )


class PackedRows:
    """Consecutive rows cut from each shard's tokens."""

    def __init__(self, shards: Sequence[Shard], body_length: int) -> None:
        self._body_length = body_length
        self._num_tokens = np.array([shard.num_tokens for shard in shards], np.int64)
        self._first_rows = _starts(-(-self._num_tokens // body_length))
        self.num_rows = int(self._first_rows[-1])

    def locate(self, rows: np.ndarray) -> Places:
        """Returns the locations of `rows`, int64 [n], ascending."""
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        starts = (rows - self._first_rows[shards]) * self._body_length
        return Places(shards, starts, np.minimum(self._num_tokens[shards] - starts, self._body_length))


class DocumentRows:
    """Rows that start with a document or continue a long one."""

    def __init__(self, store: TokenStore, body_length: int) -> None:
        self._shards = store.shards
        self._body_length = body_length
        self._separator_length = 1 if store.separator == "sep" else 0
        self._stride = _stride(store.num_documents)
        # A block has `stride` documents of one shard, fewer at its end.
        blocks = np.array([-(-shard.num_documents // self._stride) for shard in store.shards], np.int64)
        self._first_blocks = _starts(blocks)
        self._first_rows = self._counts(store)
        self.num_rows = int(self._first_rows[-1])

    def locate(self, rows: np.ndarray) -> Places:
        """Returns the locations of `rows`, int64 [n], ascending."""
        blocks = np.searchsorted(self._first_rows, rows, side="right") - 1
        shards = np.searchsorted(self._first_blocks, blocks, side="right") - 1
        documents = (blocks - self._first_blocks[shards]) * self._stride
        offsets = np.empty((len(rows), self._stride + 1), np.int64)
        for shard, own in runs(shards):
            offsets[own] = self._shards[shard].offset_windows(documents[own], self._stride + 1)
        ends = np.cumsum(self._rows_of(offsets), axis=1)
        rows_in_block = rows - self._first_rows[blocks]
        chosen = (ends <= rows_in_block[:, None]).sum(axis=1)
        every = np.arange(len(rows))
        rows_before = np.where(chosen > 0, ends[every, chosen - 1], 0)
        starts = offsets[every, chosen] + (rows_in_block - rows_before) * self._body_length
        # Includes the document's own [SEP] if it fits, which then ends the row.
        lengths = np.minimum(offsets[every, chosen + 1] - starts, self._body_length)
        return Places(shards, starts, lengths)

    def _rows_of(self, offsets: np.ndarray) -> np.ndarray:
        """Returns the number of rows of each document, int64 [..., n - 1]; 0 past a shard's last document."""
        lengths = np.maximum(np.diff(offsets) - self._separator_length, 0)
        return -(-lengths // self._body_length)

    def _counts(self, store: TokenStore) -> np.ndarray:
        """Returns the number of rows before each block, int64 [num_blocks + 1]."""
        if self._stride == 1:
            return self._counted()
        file = home() / "rows" / f"{store.fingerprint}-{self._body_length}-{self._stride}.npy"
        kept = _kept(file)
        if kept is not None and len(kept) == self._first_blocks[-1] + 1:
            return kept
        counts = self._counted()
        with contextlib.suppress(OSError):
            _keep(file, counts)
        return counts

    def _counted(self) -> np.ndarray:
        counts = np.zeros(self._first_blocks[-1] + 1, np.int64)
        for number, shard in enumerate(track(self._shards, "count rows", "shards")):
            rows = self._rows_of(shard.read_document_offsets().astype(np.int64))
            first, stop = self._first_blocks[number : number + 2]
            counts[first + 1 : stop + 1] = np.add.reduceat(rows, np.arange(0, len(rows), self._stride))
        return np.cumsum(counts, out=counts)


RowIndex = PackedRows | DocumentRows


def runs(values: np.ndarray) -> list[tuple[int, slice]]:
    """Returns the runs of equal values in `values`, int [n], each as (value, slice)."""
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(int(values[first]), slice(first, stop)) for first, stop in pairwise(bounds) if stop > first]


def _stride(num_documents: int) -> int:
    return 1 << max(0, (-(-num_documents // _MAX_COUNTS) - 1).bit_length())


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _keep(file: Path, counts: np.ndarray) -> None:
    """Writes the counts and, as a last number, their checksum."""
    file.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(file)
    with new_file(file) as stream:
        np.save(stream, np.append(counts, _checksum(counts)))


def _kept(file: Path) -> np.ndarray | None:
    """Returns the counts in a file of `_keep`; None if there is none, or it is damaged."""
    # np.load raises EOFError for an empty file.
    with contextlib.suppress(OSError, ValueError, EOFError):
        values = np.load(file)
        if (
            values.dtype == np.int64
            and values.ndim == 1
            and len(values)
            and values[-1] == _checksum(values[:-1])
        ):
            return values[:-1]
    return None


def _checksum(counts: np.ndarray) -> np.int64:
    return np.frombuffer(hashlib.sha256(counts.tobytes()).digest()[:8], np.int64)[0]
