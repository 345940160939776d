"""Lines of compressed files, with an error for any damage or truncation."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import zstandard

from mlm_jax.errors import InputError, one_line

COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")

_READ_BYTES = 1 << 16
_LONGEST_LINE = 1 << 28
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
        raise InputError(f"{file}: damaged {compression[1:]} data: {one_line(error)}") from error
    except OSError as error:
        raise_if_damaged(file, error)
        raise


def _decompressed(raw: BinaryIO, compression: str) -> Iterable[bytes]:
    match compression:
        case ".gz":
            return _lines(gzip.GzipFile(fileobj=raw))
        case ".xz":
            return _lines(lzma.open(raw))
        case ".bz2":
            return _lines(bz2.open(raw))
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
