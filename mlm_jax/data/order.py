"""Order in which training reads rows: position in an endless stream of epochs → row. A function of the seed alone.

    global     an epoch is one keyed permutation of all rows
    windowed   an epoch's blocks of consecutive rows are permuted; then the rows within windows of consecutive blocks

Both compute the row of any position in constant time, and an epoch has every row exactly once. A windowed order needs
only the data of one window at a time, so that they can be fetched while the window before is read. For this purpose a
window is divided into lanes: position p reads from lane p % LANES, and the rows of a lane come from blocks of its own.
A batch is sorted by lane, so a process that reads a contiguous part of each batch needs the blocks of few lanes.
"""

from dataclasses import dataclass

import numpy as np

from mlm_jax.data.permutation import permute

LANES = 64
WINDOW_BLOCKS = 1024
BLOCK_BYTES = 1 << 20
"""Approximate size of the tokens of a block."""


@dataclass(frozen=True)
class GlobalOrder:
    """Each epoch is a permutation of all rows."""

    num_rows: int
    seed: int

    def arranged(self, positions: np.ndarray) -> np.ndarray:
        """Returns the consecutive `positions` of a batch, int64 [n], in the order of its rows."""
        return positions

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch and the row of each of `positions`, each int64 [n]."""
        epochs, places = np.divmod(positions, self.num_rows)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            own = epochs == epoch
            rows[own] = permute(places[own], self.num_rows, self.seed, int(epoch))
        return epochs, rows


@dataclass(frozen=True)
class WindowedOrder:
    """Each epoch is a permutation of blocks, cut into windows, and of the rows within each lane of each window.

    block_rows: rows per block. The last block of the data may be shorter and is the last of every epoch.
    """

    num_rows: int
    seed: int
    block_rows: int

    @property
    def window_rows(self) -> int:
        """Number of rows of a window. The last two windows of an epoch may be shorter and share their blocks evenly."""
        return WINDOW_BLOCKS * self.block_rows

    def arranged(self, positions: np.ndarray) -> np.ndarray:
        """Returns the consecutive `positions` of a batch, int64 [n], in the order of its rows: lane by lane."""
        return positions[np.argsort(positions % LANES, kind="stable")]

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the epoch and the row of each of `positions`, each int64 [n]."""
        return positions // self.num_rows, self._rows(positions, shuffled=True)

    def blocks_in_sequence(self, positions: np.ndarray) -> np.ndarray:
        """Returns the distinct blocks of `positions`, int64 [m], if each lane read its blocks one after the other.

        Over the positions of a window, these are all blocks of the window.
        """
        return np.unique(self._rows(positions, shuffled=False) // self.block_rows)

    def window_starts(self, positions: np.ndarray) -> np.ndarray:
        """Returns the first position of the window of each of `positions`, int64 [n]."""
        epochs, places = np.divmod(positions, self.num_rows)
        starts = [self._start(window) for window in self._windows(places).tolist()]
        return epochs * self.num_rows + np.array(starts, np.int64)

    @property
    def _num_windows(self) -> int:
        return max(1, -(-self.num_rows // self.window_rows))

    def _start(self, window: int) -> int:
        """Returns the first place of a window in an epoch; `num_rows` after the last window."""
        last = self._num_windows - 1
        if window > last:
            return self.num_rows
        if window < last or last == 0:
            return window * self.window_rows
        num_blocks = -(-self.num_rows // self.block_rows)
        return -(-((last - 1) * WINDOW_BLOCKS + num_blocks) // 2) * self.block_rows

    def _windows(self, places: np.ndarray) -> np.ndarray:
        """Returns the window of each place in an epoch."""
        last = self._num_windows - 1
        before_last = np.minimum(places // self.window_rows, max(last - 1, 0))
        return np.where(places >= self._start(last), last, before_last)

    def _rows(self, positions: np.ndarray, *, shuffled: bool) -> np.ndarray:
        epochs, rows = np.divmod(positions, self.num_rows)
        numbers = epochs * self._num_windows + self._windows(rows)
        for number in np.unique(numbers).tolist():
            own = numbers == number
            epoch, window = divmod(number, self._num_windows)
            rows[own] = self._rows_of_window(rows[own], epoch, window, shuffled=shuffled)
        return rows

    def _rows_of_window(self, places: np.ndarray, epoch: int, window: int, *, shuffled: bool) -> np.ndarray:
        """Returns the rows at `places` of an epoch, all in `window`."""
        first, stop = self._start(window), self._start(window + 1)
        index, lanes = np.divmod(places - first, LANES)
        # The first lanes are longer by one row.
        size, num_longer = divmod(stop - first, LANES)
        starts = first + lanes * size + np.minimum(lanes, num_longer)
        for length, own in ((size + 1, lanes < num_longer), (size, lanes >= num_longer)):
            if shuffled and own.any():
                # All lanes have the same permutation, but begin at different places of it.
                turned = (index[own] + lanes[own] * size // LANES) % length
                index[own] = permute(turned, length, self.seed, epoch, 1 + window)
        blocks, offsets = np.divmod(starts + index, self.block_rows)
        full = blocks < self.num_rows // self.block_rows
        blocks[full] = permute(blocks[full], self.num_rows // self.block_rows, self.seed, epoch)
        return blocks * self.block_rows + offsets


def rows_per_block(num_rows: int, token_bytes: int) -> int:
    """Returns the number of rows that have about BLOCK_BYTES of the `token_bytes` bytes of all rows."""
    return max(1, num_rows * BLOCK_BYTES // token_bytes)


def cache_bytes(num_lanes: int = LANES) -> int:
    """Returns the size of two windows of some lanes, and of the pieces around their blocks."""
    return 5 * WINDOW_BLOCKS * BLOCK_BYTES * num_lanes // (2 * LANES)
