"""Who trains which run of a sweep: locks on `claim` files, which end with the process that holds them."""

import contextlib
import errno
import fcntl
import warnings
from collections.abc import Iterator
from pathlib import Path

CLAIM_FILE = "claim"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process is in such a block of the same folder, on a file system that has locks."""
    with _lock(folder, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def claimed(run_folder: Path) -> Iterator[bool]:
    """Whether the run is this process's for the block, and no other's.

    Where the file system has no locks it always is, with a warning: then runs have to be divided in another way.
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
            if error.errno not in _NO_LOCKS:
                raise
            # Without the folder in it, so that Python shows it once.
            warnings.warn(
                "the sweep's file system has no locks: of several processes each must be given its --index of --count, "
                "or a run is trained twice",
                stacklevel=1,
            )
        yield True
