"""Ensures that a folder has one owner at a time, with a file lock that ends with its process.

FOLDER/lock has a JSON line for each process that has not released the folder: previous owners that died, followed by
the current owner. The file is removed with the lock. A folder that does not exist yet, because it is renamed into place
at the end (`atomic.new_folder`), is locked by a file beside it, `.NAME.lock`, which is also held while a folder is
created in order to lock it.

A lock belongs to a `with` block: within it, the same folder can be locked again, so that a sweep can call `train`.
Other threads of the process are excluded like other processes.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from io import FileIO
from pathlib import Path

from mlm_jax.errors import InputError, RunError
from mlm_jax.files.targets import check_target, without_empty_folders

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# A lock that is released while another process opens its file is a file that no longer has a name.
_ATTEMPTS = 100
# Time for the owner of a lock to write its name, after which it is called "another process".
_NAME_SECONDS = 0.5
# Time for the owner of a name to create the folder in order to lock it, after which it creates the folder at its end.
_CREATION_SECONDS = 1.0


class FolderInUseError(InputError):
    """Another process owns the folder, which a later attempt may therefore lock."""


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
        owner: current owner; None if another process owns the folder and has not written its name.
        died: previous owners that ended without releasing the folder, in order.
    """

    def __init__(self, file: FileIO, path: Path, *, acquired: bool) -> None:
        self._file, self._path, self.acquired = file, path, acquired
        owners = _read(file)
        deadline = time.monotonic() + _NAME_SECONDS
        while not acquired and not owners and time.monotonic() < deadline:
            time.sleep(0.02)
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

    def confirm(self) -> None:
        """Raises RunError if the folder was removed, moved or replaced since it was locked."""
        # Not by the number of the file, which some network file systems change.
        with contextlib.suppress(OSError), self._path.open("rb", buffering=0) as file:
            if _read(file)[-1:] == [self.owner]:
                return
        raise RunError(
            f"{self._path.parent}: the folder was removed, moved or replaced while this process was using it "
            f"({self._path.name} is gone)"
        )

    def release(self) -> None:
        """Removes the file; the lock itself ends when the file is closed."""
        with contextlib.suppress(OSError, RunError):
            self.confirm()
            self._path.unlink()

    def _write(self, owners: list[Owner]) -> None:
        try:
            self._file.truncate(0)
            self._file.write(b"".join(json.dumps(asdict(owner)).encode() + b"\n" for owner in owners))
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise RunError(f"{self._path}: {error.strerror}") from error


@contextlib.contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[FolderLock]:
    """Locks `folder`, which is created if missing, for the block. Without `wait`, the attempt may fail: see `acquired`.

    If nothing was written into the created folder, it is removed at the end. On a file system without locks, the
    attempt always succeeds, with a warning on stderr.

    Raises:
        FolderInUseError: another process is about to create the folder; see `own_name`.
        InputError: `folder` cannot be a folder: it is a URL or a file, or cannot be written.
    """
    path = folder / LOCK_FILE
    check_target(folder)
    with without_empty_folders(path), contextlib.ExitStack() as creating:
        if not folder.exists():
            creating.enter_context(_name_to_create(folder))
        with _locked(path, wait=wait) as lock:
            creating.close()
            yield lock


@contextlib.contextmanager
def _name_to_create(folder: Path) -> Iterator[None]:
    """Locks the name of a folder that is created to be locked, unless another process does the same before."""
    deadline = time.monotonic() + _CREATION_SECONDS
    while True:
        with _locked(_name_file(folder)) as lock:
            # Also the lock of a process that has just created it, and releases the name in a moment.
            if lock.acquired or folder.exists():
                yield
                return
            if time.monotonic() > deadline:
                _require_acquired(lock, folder)
        time.sleep(0.02)


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[FolderLock]:
    """Locks `folder` like `lock_folder`, for everything that writes into a folder.

    Raises:
        FolderInUseError: another process owns the folder.
        InputError: as `lock_folder`.
    """
    with lock_folder(folder) as lock:
        _require_acquired(lock, folder)
        yield lock


@contextlib.contextmanager
def own_name(path: Path) -> Iterator[None]:
    """Locks the name of a folder that the block creates.

    Raises:
        InputError: `path` exists, another process is about to create it, or it cannot be created.
    """
    # Also a link to nothing.
    if os.path.lexists(path):
        raise _exists(path)
    check_target(path)
    with _locked(_name_file(path)) as lock:
        _require_acquired(lock, path)
        # Another process may have created it since.
        if path.exists():
            raise _exists(path)
        yield


def _name_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _exists(path: Path) -> InputError:
    return InputError(f"{path}: already exists; choose a folder that does not exist")


def _require_acquired(lock: FolderLock, folder: Path) -> None:
    if not lock.acquired:
        raise FolderInUseError(
            f"{folder}: in use by {lock.owner or 'another process'}; wait until it ends, or choose another folder"
        )


_held: ContextVar[Mapping[Path, FolderLock]] = ContextVar("_held", default={})  # noqa: B039


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[FolderLock]:
    """Locks the file `path`; its folders are created, and removed at the end if they are still empty."""
    place = Path(os.path.realpath(path))
    if place in _held.get():
        yield _held.get()[place]
        return
    check_target(path.parent)
    with without_empty_folders(path):
        file, acquired = _open(path, wait=wait)
        with file:
            lock = FolderLock(file, path, acquired=acquired)
            if acquired:
                _held.set({**_held.get(), place: lock})
            try:
                yield lock
            finally:
                if acquired:
                    # Not by a token, because the lock of a name ends before that of the folder.
                    _held.set({held: other for held, other in _held.get().items() if held != place})
                    lock.release()


def _open(path: Path, *, wait: bool) -> tuple[FileIO, bool]:
    """Opens the file of a lock; returns it and True if it is locked."""
    for _ in range(_ATTEMPTS):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _no_lock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        except FileNotFoundError:
            # Its owner has just removed the folder, which is empty.
            continue
        try:
            _require_lock_file(file, path)
            acquired = _flock(file, wait=wait)
            if not acquired or (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                return file, acquired
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()
    if not os.path.lexists(path):
        raise InputError(f"{path.parent}: no file can be created there; choose another folder")
    raise RunError(f"{path}: changes whenever it is locked; remove it if no process uses {path.parent}")


def _require_lock_file(file: FileIO, path: Path) -> None:
    file.seek(0)
    if not b'{"host": '.startswith(file.read(9) or b""):
        raise _no_lock(path)


def _no_lock(path: Path) -> InputError:
    return InputError(f"{path}: not a lock of mlm_jax: must have another name, or be in another folder")


def _flock(file: FileIO, *, wait: bool) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_once()
    return True


@functools.cache
def _warn_once() -> None:
    print(
        "warning: this file system has no locks, so two processes may write the same folder: give each process its own "
        "folder, and each process of a sweep its own --index of --count",
        file=sys.stderr,
    )


def _read(file: FileIO) -> list[Owner]:
    file.seek(0)
    owners = []
    for line in file.readlines():
        # A line may be torn if a process died while writing it.
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            owners.append(Owner(**json.loads(line)))
    return owners
