"""Recognizes files that are no UTF-8 text, even where invalid bytes are replaced, by the bytes that they begin with."""

from mlm_jax.errors import InputError

_OTHER_CONTENT = {
    b"\x1f\x8b": "gzip; name it .gz, or decompress it",
    b"\x28\xb5\x2f\xfd": "Zstandard; name it .zst, or decompress it",
    b"\xfd7zXZ\0": "xz; name it .xz, or decompress it",
    b"BZh91AY&SY": "bzip2; name it .bz2, or decompress it",
    b"PK\3\4": "a zip archive; unpack it",
    b"PAR1\x15": "Parquet; name it .parquet, or give --format parquet",
    # Before UTF-16, whose mark begins that of UTF-32.
    b"\xff\xfe\0\0": "UTF-32; convert it with iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": "UTF-32; convert it with iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it with iconv -f UTF-16 -t UTF-8",
}

# Text may have a stray NUL. Archives, databases, and UTF-16 without a byte order mark have many.
_CHECKED_BYTES = 1 << 10
_FEWEST_NULS, _NUL_SHARE = 4, 1 / 16


def check_content(file: str, first_line: bytes) -> None:
    """Raises InputError if the first line of a file is that of another kind of file."""
    for first, kind in _OTHER_CONTENT.items():
        if first_line.startswith(first):
            raise InputError(f"{file}: expected text in UTF-8, found {kind}")
    checked = first_line[:_CHECKED_BYTES]
    if checked.count(0) >= max(_FEWEST_NULS, _NUL_SHARE * len(checked)):
        raise InputError(
            f"{file}: expected text in UTF-8, found many NUL bytes, as in archives and databases, and in UTF-16 "
            "without a byte order mark"
        )


def check_line_ends(file: str, first_line: bytes) -> None:
    """Raises InputError if the lines of a file end with CR alone, so that all of it would be read as one line."""
    if not first_line.endswith(b"\n") and b"\r" in first_line.rstrip(b"\r"):
        raise InputError(
            f"{file}: its lines end with CR alone; expected LF or CR LF; convert it with tr '\\r' '\\n'"
        )
