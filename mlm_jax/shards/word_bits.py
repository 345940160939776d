"""One bit per token: set if the token continues a word. Eight tokens share a byte, the first one in its lowest bit."""

import numpy as np


class WordBits:
    """Bits of a shard while it is written."""

    def __init__(self) -> None:
        self._packed: list[np.ndarray] = []
        self._rest = np.empty(0, dtype=bool)
        self.size = 0

    def append(self, continues_word: np.ndarray) -> None:
        """Appends bool `[n]`."""
        bits = np.concatenate([self._rest, continues_word])
        whole = len(bits) // 8 * 8
        self._packed.append(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]
        self.size += len(continues_word)

    def packed(self) -> np.ndarray:
        """Returns uint8 `[num_bytes(size)]`; the last bits are 0."""
        return np.concatenate([*self._packed, np.packbits(self._rest, bitorder="little")])


def num_bytes(num_tokens: int) -> int:
    """Returns the number of bytes for the bits of `num_tokens` tokens."""
    return -(-num_tokens // 8)


def window_bytes(starts: np.ndarray, width: int) -> tuple[np.ndarray, int]:
    """Returns the first byte of each window of `width` bits, int64 `[n]`, and the number of bytes of a window."""
    return starts // 8, num_bytes(width + 7)


def unpacked(windows: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    """Returns bool `[n, width]`: the bits from each of `starts`, of the bytes that `window_bytes` describes."""
    bits = np.unpackbits(np.ascontiguousarray(windows), axis=1, bitorder="little")
    return np.take_along_axis(bits, (starts % 8)[:, None] + np.arange(width), axis=1).astype(bool)
