"""Ensures that a folder has one owner at a time, with a file lock that ends with its process.

FOLDER/lock has a JSON line for each process that has not released the folder: previous owners that died, followed by
the current owner.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Owner:
    """A process that owns a folder, or died while it owned the folder."""

    host: str
    pid: int
    since: str
    """ISO 8601, with the offset of local time."""
    step: int | None = None
    """Last step of the run when this process started working on it; None before that."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class FolderLock:
    """A lock, or a failed attempt to lock.

    Attributes:
        acquired: True if this process owns the folder.
        owner: current owner; None if another process owns the folder and has not written its name yet.
        died: previous owners that ended without releasing the folder, in order.
    """

    def __init__(self, file: BinaryIO, *, acquired: bool) -> None:
        self._file, self.acquired = file, acquired
        owners = _read(file)
        self.died, self.owner = owners[:-1], owners[-1] if owners else None
        if acquired:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            self.died, self.owner = owners, Owner(socket.gethostname(), os.getpid(), now)
            self._write([*self.died, self.owner])

    def note_step(self, step: int) -> None:
        """Records the step at which the owner started working on the run."""
        assert self.owner is not None
        self.owner = replace(self.owner, step=step)
        self._write([*self.died, self.owner])

    def release(self) -> None:
        """Removes all owners; the lock itself ends when the file is closed."""
        if self.acquired:
            self._write([])

    def _write(self, owners: list[Owner]) -> None:
        self._file.truncate(0)
        self._file.write(b"".join(json.dumps(asdict(owner)).encode() + b"\n" for owner in owners))
        self._file.flush()


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[FolderLock]:
    """Locks `folder`, which is created if missing, for the block. Without `wait`, the attempt may fail: see `acquired`.

    On a file system without locks, always succeeds, with a warning. Locks of the same process also exclude each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+b") as file:
        acquired = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            acquired = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            # The message omits the folder, so that Python shows it only once.
            warnings.warn(
                "this file system has no locks, so two processes may train the same run: give each process of a sweep "
                "its own --index of --count",
                stacklevel=3,
            )
        lock = FolderLock(file, acquired=acquired)
        try:
            yield lock
        finally:
            lock.release()


def _read(file: BinaryIO) -> list[Owner]:
    file.seek(0)
    owners = []
    for line in file:
        # A line may be torn if a process died while writing it.
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            owners.append(Owner(**json.loads(line)))
    return owners
