"""Checksums of the pieces of a file, so that a part of the file can be verified by itself.

A piece has 32 KiB; the last one of a file may be shorter. Its checksum is the first 8 bytes of its sha256: short,
because a reader of a few pieces of a shard needs the checksums of all, and long enough for damage not to pass. The
checksums themselves are covered by a whole sha256 in the manifest.
"""

import hashlib

PIECE_BYTES = 1 << 15
DIGEST_BYTES = 8


class PieceDigests:
    """Checksums of a file while it is written."""

    def __init__(self) -> None:
        self._digests = b""
        self._rest = b""

    def append(self, data: bytes) -> None:
        """Appends bytes of the file."""
        data = self._rest + data
        whole = len(data) // PIECE_BYTES * PIECE_BYTES
        self._digests += piece_digests(data[:whole])
        self._rest = data[whole:]

    def complete(self) -> bytes:
        """Returns the checksums of all pieces; the file has ended."""
        return self._digests + piece_digests(self._rest)


def piece_digests(data: bytes) -> bytes:
    """Returns the checksums of the pieces of `data`, one after the other."""
    view = memoryview(data)
    pieces = (view[first : first + PIECE_BYTES] for first in range(0, len(view), PIECE_BYTES))
    return b"".join(hashlib.sha256(piece).digest()[:DIGEST_BYTES] for piece in pieces)


def num_pieces(num_bytes: int) -> int:
    """Returns the number of pieces of a file."""
    return -(-num_bytes // PIECE_BYTES)
