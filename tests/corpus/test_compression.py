"""Compressed text that would fill the memory."""

import bz2
import io
import lzma
from collections.abc import Callable

import pytest

from mlm_jax.corpus import compression
from mlm_jax.errors import InputError
from tests.corpus.test_documents import COMPRESS


@pytest.mark.parametrize("suffix", compression.COMPRESSION_SUFFIXES)
def test_a_line_that_would_fill_the_memory_is_refused(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_LONGEST_LINE", 1 << 20)

    def lengths(longest: int) -> list[int]:
        packed = COMPRESS[suffix](b"first\n" + b"a" * (longest - 1) + b"\nlast")
        return [len(line) for line in compression.decompressed_lines("file", io.BytesIO(packed), suffix)]

    assert lengths(1 << 20) == [6, 1 << 20, 4]
    with pytest.raises(InputError, match="file: damaged: a line of more than 1 MB, which no document has"):
        lengths((1 << 20) + 1)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
def test_damage_after_the_first_stream_is_an_error(suffix: str) -> None:
    first, second = COMPRESS[suffix](b"one\n"), COMPRESS[suffix](b"two\n")

    def lines(data: bytes) -> list[bytes]:
        return list(compression.decompressed_lines("file", io.BytesIO(data), suffix))

    assert lines(first + second) == [b"one\n", b"two\n"]
    for data in (first + b"X" + second[1:], first + b"something else"):
        with pytest.raises(InputError, match="file: damaged"):
            lines(data)


@pytest.mark.parametrize("compress", [lzma.compress, bz2.compress])
def test_zero_bytes_after_a_stream_are_padding(compress: Callable[[bytes], bytes]) -> None:
    data = compress(b"one\n") + bytes(8) + compress(b"two\n") + bytes(200_000)
    suffix = ".xz" if compress is lzma.compress else ".bz2"
    assert list(compression.decompressed_lines("file", io.BytesIO(data), suffix)) == [b"one\n", b"two\n"]


def test_xz_data_that_need_much_memory_are_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}]
    data = lzma.compress(b"one\n", filters=filters)
    with pytest.raises(InputError, match=r"file: its xz data need more than 268 MB of memory"):
        list(compression.decompressed_lines("file", io.BytesIO(data), ".xz"))
    highest = lzma.compress(b"one\n", preset=9 | lzma.PRESET_EXTREME)
    assert list(compression.decompressed_lines("file", io.BytesIO(highest), ".xz")) == [b"one\n"]
