"""Checks the path of an output before any work is done for it, and describes failed writes."""

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mlm_jax.errors import InputError, RunError

# `Path` reduces the slashes of gs://bucket/run to one.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
# Files that each kind of folder has, in the order in which they say what a folder is.
_KINDS = {
    "_CHECKPOINT_METADATA": "a checkpoint",
    "manifest.json": "prepared data",
    "bert_config.json": "a model",
    "config.json": "a model or a run",
    "tokenizer.json": "a tokenizer",
    "vocab.txt": "a tokenizer",
}
# Common file systems allow 255 bytes, of which temporary names beside a file need up to 105: host, process and suffix.
_LONGEST_NAME, _LONGEST_NEW_NAME = 255, 150
_FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def target_path(path: Any) -> Path:
    """Returns the path of an output that a program states. Raises InputError if it is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise InputError(f"the output: found {type(path).__name__} {path!r}: must be a path")
    if "\0" in os.fspath(path):
        raise InputError(f"{os.fspath(path)!r}: must be a path, which has no null character")
    return Path(path)


def check_target(folder: str | Path) -> None:
    """Checks that files can be created in `folder`, or that it can be created. Writes nothing.

    Raises:
        InputError: `folder` has no name or one that is too long, is a URL, begins with "~", is a file or below a file,
            is a link to nothing, or cannot be written.
    """
    _require_local(folder)
    folder = Path(folder)
    for path in (folder, *folder.parents):
        length = len(os.fsencode(path.name))
        if length > _LONGEST_NAME or (length > _LONGEST_NEW_NAME and not path.exists()):
            raise InputError(f"{folder}: a name is too long: must have at most {_LONGEST_NEW_NAME} bytes")
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise InputError(f"{folder}: {path} is a link to {path.readlink()}, which does not exist")
    if not existing.is_dir():
        where = "" if existing == folder else f"{existing} "
        raise InputError(f"{folder}: {where}is a file; must be a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder}: {existing} cannot be written; choose another folder or change its permissions"
        )


def require_nothing_else(folder: Path, *, own: Collection[str]) -> None:
    """Checks that a folder has no files of another kind of folder, which new files would make unusable.

    Args:
        folder: may not exist.
        own: the files that the caller replaces.

    Raises:
        InputError: the folder has such a file.
    """
    for name, kind in _KINDS.items():
        if name not in own and (folder / name).exists():
            raise InputError(f"{folder}: is the folder of {kind} (it has {name}); choose another folder")


def _require_local(path: str | Path) -> None:
    if not str(path).strip():
        raise InputError("the output must have a name: it is empty")
    # Only shells expand it. A folder of that name is dangerous to remove.
    if (home := os.path.expanduser(path)) != str(path):
        raise InputError(f"{path}: ~ means a home folder only in a shell; must be {home}")
    if url := _URL.match(str(path)):
        raise InputError(f"{url[1]}://{str(path)[url.end() :]}: must be a local path, not a URL")


def check_target_file(file: Path) -> None:
    """Checks that `file` can be created or replaced, like `check_target`."""
    _require_local(file)
    check_target(file.parent)
    if file.is_dir():
        raise InputError(f"{file}: is a folder; must be a file")


@contextlib.contextmanager
def without_empty_folders(path: Path) -> Iterator[None]:
    """Removes the folders above `path` that the block creates and leaves empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def naming_target(path: Path) -> Iterator[None]:
    """Turns the error of a full disk within the block into a RunError that names `path`, which the block creates."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, RunError) and (reason := failed_write(error)):
            raise RunError(f"{path}: {reason}; nothing was written") from error
        raise


def failed_write(error: BaseException) -> str | None:
    """Returns the system's words for the error of a full or read-only disk, None for other errors.

    Libraries wrap such errors in exceptions of their own, so their messages are searched, too.
    """
    found: BaseException | None = error
    while found is not None:
        for number in _FAILED_WRITES:
            if getattr(found, "errno", None) == number or _mentions(str(found), number):
                return os.strerror(number)
        found = found.__cause__ or found.__context__
    return None


def _mentions(message: str, number: int) -> bool:
    # Rust says "os error 28", HDF5 "errno = 28", TensorFlow and TensorStore the words alone.
    return bool(
        os.strerror(number) in message or re.search(rf"\b(os error|errno =|errno) {number}\b", message)
    )
