"""Fetches the blocks that a windowed order needs next, while the rows of the current window are read."""

import threading
from collections.abc import Sequence
from typing import Self

import numpy as np

from mlm_jax.data.order import LANES, WindowedOrder, cache_bytes
from mlm_jax.data.packing import RowIndex
from mlm_jax.data.remote_pieces import PieceCache
from mlm_jax.data.shards import Shard

_STEPS_PER_BLOCK = 8


class FetchAhead:
    """Fetches blocks at the pace of the steps, within a `with` block: at most one window ahead of the rows read.

    Each lane has a cursor, which passes through the blocks of its windows in sequence, one window ahead of the lane's
    positions. When the steps begin, or jump forward, it starts at the first position of the current window.
    """

    def __init__(
        self,
        order: WindowedOrder,
        index: RowIndex,
        shards: Sequence[Shard],
        cache: PieceCache,
        stop: int,
        *,
        with_words: bool,
    ) -> None:
        """Fetches nothing for positions from `stop` on, except blocks of the same window."""
        self._order, self._index, self._shards, self._cache = order, index, shards, cache
        self._stop, self._with_words = stop, with_words
        self._cursors = np.full(LANES, -1)
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the requests, and drops what was fetched."""
        with self._lock:
            self._closed = True
        self._cache.clear()

    def advance(self, positions: np.ndarray) -> None:
        """Begins to fetch what follows the `positions`, int64 [n], of a step; returns at once."""
        with self._lock:
            if self._closed or not len(positions):
                return
            self._advance(positions)

    def _advance(self, positions: np.ndarray) -> None:
        ahead = self._order.window_rows
        ordered = np.sort(positions)
        lanes, first = np.unique(ordered % LANES, return_index=True)
        current, cursors = ordered[first], self._cursors[lanes]
        jumped = cursors < current
        starts = self._order.window_starts(current[jumped])
        cursors[jumped] = starts + (lanes[jumped] - starts) % LANES
        # Short strides, because a lane may have small parts of blocks.
        stride = LANES * max(1, self._order.block_rows // _STEPS_PER_BLOCK)
        while (due := cursors <= current + ahead).any():
            self._fetch(cursors[due])
            cursors[due] += stride
        self._cursors[lanes] = cursors
        # A process that reads few lanes needs less memory.
        self._cache.keep_at_most(cache_bytes(int((self._cursors >= 0).sum())))

    def _fetch(self, positions: np.ndarray) -> None:
        """Fetches the blocks of `positions` in sequence."""
        order = self._order
        blocks = order.blocks_in_sequence(positions[order.window_starts(positions) < self._stop])
        firsts = blocks * order.block_rows
        lasts = np.minimum(firsts + order.block_rows, order.num_rows) - 1
        begin, end = self._index.locate(firsts), self._index.locate(lasts)
        begins = zip(begin.shards.tolist(), begin.starts.tolist(), strict=True)
        ends = zip(end.shards.tolist(), (end.starts + end.lengths).tolist(), strict=True)
        for (first, start), (last, stop) in zip(begins, ends, strict=True):
            for number in range(first, last + 1):
                shard = self._shards[number]
                shard.fetch_later(
                    start if number == first else 0,
                    stop if number == last else shard.num_tokens,
                    with_words=self._with_words,
                )
