"""Lines of compressed files, with an error for any damage or truncation."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import zstandard

from mlm_jax.errors import InputError, one_line

COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")

_READ_BYTES = 1 << 16
_LONGEST_LINE = 1 << 28
# xz needs 65 MB for its highest setting, and 4 GB for the largest window that a file may ask for.
_XZ_MEMORY = 1 << 28
# zstandard returns the whole decompressed piece at once, up to about 32,000 times its size: 130 MB.
_ZSTD_PIECE_BYTES = 1 << 12


def decompressed_lines(file: str, raw: BinaryIO, compression: str) -> Iterator[bytes]:
    """Yields the lines of the decompressed file, including their ends.

    Raises InputError if the compressed data are damaged or truncated.
    """
    try:
        yield from _decompressed(raw, compression)
    except EOFError as error:
        raise InputError(f"{file}: truncated: the {compression} data end before their end marker") from error
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        if "Memory usage limit" in str(error):
            raise InputError(
                f"{file}: its xz data need more than {_XZ_MEMORY / 1e6:.0f} MB of memory: must be at most that, as "
                "with any of xz -1 to -9"
            ) from error
        raise InputError(f"{file}: damaged {compression[1:]} data: {one_line(error)}") from error
    except OSError as error:
        raise_if_damaged(file, error)
        raise


def _decompressed(raw: BinaryIO, compression: str) -> Iterable[bytes]:
    match compression:
        case ".gz":
            return _lines(gzip.GzipFile(fileobj=raw))
        case ".xz":
            return _lines(io.BufferedReader(_StreamsFile(raw, _xz_stream), _READ_BYTES))
        case ".bz2":
            return _lines(io.BufferedReader(_StreamsFile(raw, bz2.BZ2Decompressor), _READ_BYTES))
        case ".zst":
            return _lines(io.BufferedReader(_ZstdFile(raw), _READ_BYTES))
        case _:
            return raw


def _lines(stream: Any) -> Iterator[bytes]:
    """Yields lines of bounded length: a few kilobytes may decompress to a line that fills the memory."""
    while line := stream.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise OSError(f"a line of more than {_LONGEST_LINE / 1e6:.0f} MB, which no document has")
        yield line


def _xz_stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


class _StreamsFile(io.RawIOBase):
    """Decompressed streams of a .xz or .bz2 file; raises EOFError if the last one is truncated.

    Python's own files end without an error where a stream after the first is damaged, and have no limit of memory.
    """

    def __init__(self, raw: BinaryIO, start: Callable[[], Any]) -> None:
        self._raw = raw
        self._start = start
        self._stream = start()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof and not self._next_stream():
                return 0
            chunk = self._rest
            if self._stream.needs_input and not chunk:
                chunk = self._raw.read(_READ_BYTES)
                if not chunk:
                    raise EOFError("truncated stream")
            self._rest = b""
            data = self._stream.decompress(chunk, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _next_stream(self) -> bool:
        """Begins the next stream; returns False at the end of the file. Zero bytes between streams are padding."""
        chunk = self._stream.unused_data
        while not (rest := chunk.lstrip(b"\0")):
            chunk = self._raw.read(_READ_BYTES)
            if not chunk:
                return False
        self._stream, self._rest = self._start(), rest
        return True


class _ZstdFile(io.RawIOBase):
    """Decompressed stream of a .zst file; raises EOFError if the last frame is truncated.

    zstandard's own stream_reader treats the end of a truncated file as a normal end.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: Any = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._rest or self._raw.read(_ZSTD_PIECE_BYTES)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("truncated zstd frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(chunk))
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def raise_if_damaged(file: str, error: OSError) -> None:
    """Raises InputError if `error` is due to damaged content rather than a failing disk."""
    # gzip, bz2 and pyarrow report damaged content as an OSError without errno; a failing disk sets it.
    if error.errno is None:
        raise InputError(f"{file}: damaged: {one_line(error)}") from error
