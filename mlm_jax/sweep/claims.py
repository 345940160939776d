"""Who trains which run of a sweep: locks on `claim` files, which end with the process that holds them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mlm_jax.errors import InputError

CLAIM_FILE = "claim"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process is in such a block of the same folder. Raises what `claimed` raises."""
    with _lock(folder, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def claimed(run_folder: Path) -> Iterator[bool]:
    """Whether the run is this process's for the block, and no other's.

    Raises:
        InputError: the file system has no locks.
    """
    with _lock(run_folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
        yield mine


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLAIM_FILE).open("wb") as file:
        try:
            fcntl.flock(file, kind)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise InputError(
                f"{folder}: {os.strerror(error.errno or 0)}: must be on a file system that locks files"
            ) from error
        yield True
