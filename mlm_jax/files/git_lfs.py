"""Recognizes the small text files that a clone without Git LFS has in place of large files."""

from pathlib import Path

from mlm_jax.errors import InputError

_FIRST_LINE = b"version https://git-lfs.github.com/spec/v1"


def check_no_pointer(where: object, start: bytes) -> None:
    """Raises InputError if `start`, the first bytes of a file, are those of a pointer. `where` names the file."""
    if start.startswith(_FIRST_LINE):
        raise InputError(
            f"{where}: is a pointer of Git LFS in place of the file: run `git lfs pull`, or download the file"
        )


def check_no_pointer_file(file: Path) -> None:
    """Raises InputError if an existing file is a pointer."""
    with file.open("rb") as opened:
        check_no_pointer(file, opened.read(len(_FIRST_LINE)))
