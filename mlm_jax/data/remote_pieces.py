"""Remote files read in pieces: fetched in the background or when they are needed, verified, and kept in memory.

Rows wait only for the pieces that they need, which are fetched before those that will be needed later. A piece is not
fetched twice while it is kept. Pieces are dropped in the order in which they were first wanted, not last read, because
those of the next window have not been read yet.
"""

import heapq
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mlm_jax.data.folders import RemoteFile
from mlm_jax.data.piece_digests import DIGEST_BYTES, PIECE_BYTES, piece_digests
from mlm_jax.errors import RunError

_THREADS = 16
_SLOW_SECONDS = 30.0


@dataclass(frozen=True)
class PiecewiseFile:
    """A remote file of which only the pieces that are read are fetched.

    checksums, first_digest: file with the checksums of the pieces, and the number of checksums before them in it.
    """

    remote: RemoteFile
    checksums: RemoteFile
    first_digest: int
    cache: "PieceCache" = field(repr=False, compare=False)

    @property
    def url(self) -> str:
        """URL of the file."""
        return self.remote.url

    def request(self, starts: np.ndarray, num_bytes: int) -> None:
        """Begins to fetch `num_bytes` bytes, at most those up to the end of the file, from each of `starts`."""
        stops = np.minimum(starts + num_bytes, self.remote.size)
        firsts, lasts = starts // PIECE_BYTES, (stops - 1) // PIECE_BYTES
        every = firsts[:, None] + np.arange((lasts - firsts).max() + 1)
        self.cache.fetch_now(self, np.unique(np.minimum(every, lasts[:, None])).tolist())

    def fetch_later(self, start: int, stop: int) -> None:
        """Fetches bytes `start` to `stop` - 1 in the background, after everything that rows already need."""
        if start < stop:
            self.cache.fetch_later(self, start // PIECE_BYTES, -(-stop // PIECE_BYTES))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer` with the bytes from `offset` on; waits for them.

        Raises:
            InputError: the file or that of its checksums is missing, or the latter is damaged.
            RunError: the bytes could not be downloaded, or do not match their checksums.
        """
        while buffer:
            first, content = self.cache.piece(self, offset // PIECE_BYTES)
            part = content[offset - first :][: len(buffer)]
            buffer[: len(part)] = part
            buffer, offset = buffer[len(part) :], offset + len(part)

    def fetch(self, first: int, stop: int) -> bytes:
        """Returns the verified pieces `first` to `stop` - 1. Raises what `read_into` raises."""
        with self.checksums.fetch().open("rb") as file:
            file.seek((self.first_digest + first) * DIGEST_BYTES)
            expected = file.read((stop - first) * DIGEST_BYTES)
        start, end = first * PIECE_BYTES, min(stop * PIECE_BYTES, self.remote.size)
        where = f"{self.url}: bytes {start:,} to {end - 1:,} do not match their checksums"
        for again in (False, True):
            content = self.remote.fetch_range(start, end)
            if piece_digests(content) == expected:
                return content
            if not again:
                warnings.warn(f"{where}; fetching them again", stacklevel=2)
        raise RunError(f"{where}, again; copy the complete prepared folder there again")


@dataclass(eq=False)
class _Stretch:
    """Consecutive pieces that are fetched with one request."""

    file: PiecewiseFile
    first: int
    stop: int
    content: "Future[memoryview]" = field(default_factory=Future)

    def __str__(self) -> str:
        stop = min(self.stop * PIECE_BYTES, self.file.remote.size)
        return f"bytes {self.first * PIECE_BYTES:,} to {stop - 1:,}"


class PieceCache:
    """Pieces of the files of a store, in memory; may be used from several threads.

    Its own threads end when they have nothing to do.
    """

    def __init__(self, most_bytes: int) -> None:
        """Keeps at most `most_bytes` bytes that are not being read."""
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._stretches: dict[_Stretch, int] = {}
        """Bytes of each stretch, 0 until it is fetched. The first one is dropped first."""
        self._bytes = 0
        self._by_piece: dict[tuple[str, int], _Stretch] = {}
        self._jobs: list[tuple[bool, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._num_threads = 0

    def keep_at_most(self, num_bytes: int) -> None:
        """Changes the number of bytes to keep."""
        with self._lock:
            self._most_bytes = num_bytes

    def fetch_now(self, file: PiecewiseFile, pieces: Iterable[int]) -> None:
        """Begins to fetch the absent ones of `pieces`, ascending, before all pieces of `fetch_later`."""
        with self._lock:
            for stretch in self._begin(file, pieces):
                self._add_job(False, partial(self._fetch, stretch))

    def fetch_later(self, file: PiecewiseFile, first: int, stop: int) -> None:
        """Fetches the absent ones of pieces `first` to `stop` - 1, after those of earlier calls."""
        with self._lock:
            self._add_job(True, partial(self._fetch_absent, file, range(first, stop)))

    def piece(self, file: PiecewiseFile, piece: int) -> tuple[int, memoryview]:
        """Returns bytes of the file that contain a piece, and the offset of the first one; waits for them.

        Raises what `PiecewiseFile.read_into` raises.
        """
        stretch = self._by_piece.get((file.url, piece))
        while stretch is None:
            self.fetch_now(file, [piece])
            stretch = self._by_piece.get((file.url, piece))
        seconds = 0.0
        while not (stretch.content.done() or wait([stretch.content], _SLOW_SECONDS).done):
            seconds += _SLOW_SECONDS
            warnings.warn(f"{file.url}: waiting for {stretch} for {seconds:g} s", stacklevel=2)
        return stretch.first * PIECE_BYTES, stretch.content.result()

    def clear(self) -> None:
        """Drops all pieces, and the requests of `fetch_later` that have not begun."""
        with self._lock:
            # Rows may still wait for the others, which are the smaller ones.
            self._jobs = sorted(job for job in self._jobs if not job[0])
            self._stretches.clear()
            self._by_piece.clear()
            self._bytes = 0

    def _begin(self, file: PiecewiseFile, pieces: Iterable[int]) -> list[_Stretch]:
        """Registers the absent pieces. Returns their stretches, which the caller must fetch."""
        begun: list[_Stretch] = []
        for piece in pieces:
            if (file.url, piece) not in self._by_piece:
                if begun and begun[-1].stop == piece:
                    begun[-1].stop += 1
                else:
                    begun.append(_Stretch(file, piece, piece + 1))
                self._by_piece[file.url, piece] = begun[-1]
        self._stretches.update(dict.fromkeys(begun, 0))
        return begun

    def _fetch_absent(self, file: PiecewiseFile, pieces: range) -> None:
        with self._lock:
            # Those that are present will be needed with the others, so they are dropped with them.
            for piece in pieces:
                if stretch := self._by_piece.get((file.url, piece)):
                    self._stretches[stretch] = self._stretches.pop(stretch)
            begun = self._begin(file, pieces)
        for stretch in begun:
            self._fetch(stretch)

    def _fetch(self, stretch: _Stretch) -> None:
        try:
            content = memoryview(stretch.file.fetch(stretch.first, stretch.stop))
        except Exception as error:
            with self._lock:
                # Fetched again if it is needed again.
                self._forget(stretch)
            stretch.content.set_exception(error)
            return
        stretch.content.set_result(content)
        with self._lock:
            if stretch in self._stretches:
                self._stretches[stretch] = len(content)
                self._bytes += len(content)
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._stretches)))

    def _forget(self, stretch: _Stretch) -> None:
        self._bytes -= self._stretches.pop(stretch, 0)
        for piece in range(stretch.first, stretch.stop):
            if self._by_piece.get((stretch.file.url, piece)) is stretch:
                del self._by_piece[stretch.file.url, piece]

    def _add_job(self, later: bool, job: Callable[[], None]) -> None:
        heapq.heappush(self._jobs, (later, next(self._numbers), job))
        if self._num_threads < _THREADS:
            self._num_threads += 1
            threading.Thread(target=self._work, name="pieces", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._num_threads -= 1
                    return
                _, _, job = heapq.heappop(self._jobs)
            job()
