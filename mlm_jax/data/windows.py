"""Reads windows of arrays: in memory, in local files, mapped or not, and in remote files, whole or in pieces."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlm_jax.data.folders import RemoteFile
from mlm_jax.data.remote_pieces import PiecewiseFile
from mlm_jax.errors import RunError

Source = Path | RemoteFile | PiecewiseFile | np.ndarray


def local_file(source: Source) -> Path:
    """Returns the path of a whole file, which is downloaded if it is remote."""
    assert not isinstance(source, np.ndarray | PiecewiseFile), "a whole file"
    return source.fetch() if isinstance(source, RemoteFile) else source


def name_of(source: Source) -> str:
    """Returns the path or URL of a file."""
    return source.url if isinstance(source, RemoteFile | PiecewiseFile) else str(source)


def map_file(source: Source, dtype: np.dtype) -> np.ndarray:
    """Returns the array in a whole file, memory-mapped."""
    return source if isinstance(source, np.ndarray) else np.memmap(local_file(source), dtype=dtype, mode="r")


def array_windows(values: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """Returns `values[start : start + width]` for each of `starts`, `[n, width]`, padded with the last value."""
    if (starts + width <= len(values)).all():
        return np.lib.stride_tricks.sliding_window_view(values, width)[starts]
    return values[np.minimum(starts[:, None] + np.arange(width)[None], len(values) - 1)]


def read_windows(source: Source, dtype: np.dtype, size: int, starts: np.ndarray, width: int) -> np.ndarray:
    """Returns the same for the `size` values in a file, without mapping it."""
    windows = np.empty((len(starts), width), dtype)
    buffer = memoryview(windows).cast("B")
    with _reader(source) as read_into:
        for row, start in enumerate(starts.tolist()):
            available = min(width, size - start)
            first = row * width * dtype.itemsize
            read_into(buffer[first : first + available * dtype.itemsize], start * dtype.itemsize)
            windows[row, available:] = windows[row, available - 1]
    return windows


@contextlib.contextmanager
def _reader(source: Source) -> Iterator[Callable[[memoryview, int], None]]:
    """Yields a function that fills a buffer with the bytes of the file from an offset on."""
    if isinstance(source, PiecewiseFile):
        yield source.read_into
        return
    file = local_file(source)
    descriptor = os.open(file, os.O_RDONLY)

    def read_into(buffer: memoryview, offset: int) -> None:
        if not _read_fully(descriptor, buffer, offset):
            raise RunError(f"{file}: truncated since it was opened; prepare the folder again")

    try:
        yield read_into
    finally:
        os.close(descriptor)


def _read_fully(descriptor: int, buffer: memoryview, offset: int) -> bool:
    """Fills `buffer` from `offset` in the file; returns False if the file ends first. A single read may be short."""
    while buffer:
        size = os.preadv(descriptor, [buffer], offset)
        if size == 0:
            return False
        buffer, offset = buffer[size:], offset + size
    return True
