"""Files and folders that are there whole or not at all."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mlm_jax.errors import InputError

# A file under such a name is still being written; a killed process leaves nothing else behind.
PARTIAL_SUFFIX = ".partial"


def home() -> Path:
    """`$MLM_JAX_HOME`, by default ~/.cache/mlm_jax."""
    return Path(os.environ.get("MLM_JAX_HOME") or "~/.cache/mlm_jax").expanduser()


def partial_path(path: Path) -> Path:
    """Return the name under which `path` is written before it is complete, in the same folder."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def own_partial_path(path: Path) -> Path:
    """`partial_path`, by a name that no other process writes to: of several that write `path`, one stays whole."""
    return path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL_SUFFIX}")


def commit(file: BinaryIO, path: Path) -> None:
    """Close `file`, written under a partial name, and give it its own, `path`, once its bytes are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    Path(file.name).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: a reader, after a crash too, finds all of it or what was there before."""
    partial = own_partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            commit(file, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `path` at the end of the block, or goes where the block fails.

    Raises:
        InputError: `path` is there already.
    """
    if path.exists():
        raise InputError(f"{path}: is there already: must be a folder that does not exist")
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
