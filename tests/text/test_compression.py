"""Compressed text that would fill the memory."""

import io

import pytest

from mlm_jax.errors import InputError
from mlm_jax.text import compression
from tests.text.test_corpus import COMPRESS


@pytest.mark.parametrize("suffix", compression.COMPRESSION_SUFFIXES)
def test_a_line_that_would_fill_the_memory_is_refused(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_LONGEST_LINE", 1 << 20)

    def lengths(longest: int) -> list[int]:
        packed = COMPRESS[suffix](b"first\n" + b"a" * (longest - 1) + b"\nlast")
        return [len(line) for line in compression.decompressed_lines("file", io.BytesIO(packed), suffix)]

    assert lengths(1 << 20) == [6, 1 << 20, 4]
    with pytest.raises(InputError, match="file: damaged: a line of more than 1 MB, which no document has"):
        lengths((1 << 20) + 1)
