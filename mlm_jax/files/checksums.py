"""Checksums of a folder's files, in the format of `sha256sum`: `sha256sum -c mlm_jax.sha256` checks them, too."""

import fnmatch
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mlm_jax.errors import InputError
from mlm_jax.files.atomic import write_atomically

CHECKSUMS_FILE = "mlm_jax.sha256"

_LINE = re.compile(r"([0-9a-f]{64})  (.{1,1000})")

# A hundred thousand files.
_LARGEST_BYTES = 1 << 24


def is_plain_name(name: str) -> bool:
    """Returns True for the name of a file in the same folder, which no path or special name is."""
    return (
        name not in ("", ".", "..")
        and not set("/\\\0") & set(name)
        and len(name.encode(errors="replace")) < 256
    )


def checksum(file: Path) -> str:
    """Returns the hexadecimal sha256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Returns the sha256 of every file in a folder, by relative path with slashes, except that of mlm_jax.sha256."""
    return {name: checksum(folder / name) for name in _files(folder)}


def write_checksums(folder: Path) -> None:
    """Writes mlm_jax.sha256 for every file in a folder."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in checksums(folder).items())
    write_atomically(folder / CHECKSUMS_FILE, lines.encode())


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def unlisted_files(folder: Path) -> list[str]:
    """Returns the files of a folder that its intact mlm_jax.sha256 does not list, by relative path with slashes."""
    text = (folder / CHECKSUMS_FILE).read_bytes().decode(errors="replace")
    listed = {line.partition("  ")[2] for line in text.splitlines()}
    return [name for name in _files(folder) if name not in listed]


def check_checksums(folder: Path, *, complete: bool, written: Sequence[str] = ()) -> None:
    """Compares the files of a folder with its mlm_jax.sha256, if there is one. Reads about 1 GB per second.

    Args:
        folder: any folder.
        complete: False if files may be missing, such as weights that were not downloaded.
        written: patterns of files that are never added later, so they are listed if they exist.

    Raises:
        InputError: a file differs, is missing or should be listed, or mlm_jax.sha256 is damaged.
    """
    listing = folder / CHECKSUMS_FILE
    if not os.path.lexists(listing):
        return
    if not listing.is_file():
        raise InputError(f"{listing}: damaged: must be a file, found a folder or a link to nothing")
    if listing.stat().st_size > _LARGEST_BYTES:
        raise InputError(
            f"{listing}: damaged: must be at most {_LARGEST_BYTES / 1e6:.0f} MB, a line per file"
        )
    lines = listing.read_bytes().decode(errors="replace").replace("\r\n", "\n").split("\n")
    if len(lines) < 2 or lines.pop():
        raise InputError(f"{listing}: damaged or truncated: must have a line per file")
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None or not all(map(is_plain_name, match[2].split("/"))):
            raise InputError(
                f"{listing}:{number}: damaged: must be a sha256, two spaces and a file of the folder"
            )
        file = folder / match[2]
        if not file.is_file():
            if complete:
                raise InputError(f"{file}: missing, but listed in {CHECKSUMS_FILE}")
        elif checksum(file) != match[1]:
            raise InputError(
                f"{file}: damaged or edited: its sha256 is not the one in {CHECKSUMS_FILE}; if it was edited on "
                f"purpose, delete {CHECKSUMS_FILE}"
            )
    for name in unlisted_files(folder):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in written):
            raise InputError(
                f"{folder / name}: not listed in {CHECKSUMS_FILE}, which is therefore damaged or truncated; if the "
                f"file was added on purpose, delete {CHECKSUMS_FILE}"
            )
