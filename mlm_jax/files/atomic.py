"""Files and folders that appear complete or not at all.

Each is written under a unique temporary name in the same folder, `NAME.HOST-PID-TOKEN.partial`, and renamed at the end.
No two writers share such a name, so no file is damaged on file systems without locks. Elsewhere, a lock beside a new
folder tells the second writer at the start, instead of after all its work.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from mlm_jax.errors import InputError, RunError
from mlm_jax.files.folder_lock import own_name
from mlm_jax.files.targets import naming_target

PARTIAL_SUFFIX = ".partial"

_WRITER = re.compile(r"\.(?P<host>[^/]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial$")
# The processes of other hosts are not visible here, so their temporary files count as abandoned after this time.
_ABANDONED_SECONDS = 24 * 60 * 60


def partial_path(path: Path) -> Path:
    """Returns a new temporary name for `path`, in the same folder, that no other writer uses."""
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.{writer}{PARTIAL_SUFFIX}")


def partial_paths(folder: Path) -> list[Path]:
    """Returns the temporary files and folders directly in `folder`, of all writers."""
    return [path for path in folder.iterdir() if _WRITER.search(path.name)] if folder.is_dir() else []


def remove_abandoned(path: Path) -> None:
    """Removes the temporary files and folders of `path` whose writers are dead.

    A writer is dead if it ran on this host and its process is gone, or if it has not touched its file for a day. A live
    writer that is mistaken for dead fails when it renames its file, and damages nothing.
    """
    for partial in partial_paths(path.parent):
        writer = _WRITER.fullmatch(partial.name.removeprefix(path.name))
        if writer and _is_abandoned(partial, writer["host"], int(writer["pid"])):
            with contextlib.suppress(OSError):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _is_abandoned(partial: Path, host: str, pid: int) -> bool:
    try:
        if host == socket.gethostname():
            os.kill(pid, 0)
            return False
        return time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS
    except ProcessLookupError:
        return True
    # The process belongs to another user, or the file no longer exists.
    except OSError:
        return False


def commit(file: BinaryIO, path: Path) -> None:
    """Flushes `file` to disk, closes it, and renames it from its temporary name to `path`."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    Path(file.name).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `path` at the end of the block and is removed if the block fails.

    A reader sees either the old or the new content, even after a crash.

    Raises:
        OSError: the file could not be written; `filename` is set.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            commit(file, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically, with `new_file`."""
    with new_file(path) as file:
        file.write(content)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: none is replaced unless there was room for all. They appear in this order."""
    with contextlib.ExitStack() as stack:
        for path, content in reversed(list(contents.items())):
            file = stack.enter_context(new_file(path))
            file.write(content)
            file.flush()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Creates a temporary folder that becomes `path` at the end of the block and is removed if the block fails.

    Raises:
        InputError: `path` exists, another process is about to create it, or it cannot be created.
        RunError: the disk is full.
    """
    with own_name(path), naming_target(path):
        remove_abandoned(path)
        partial = partial_path(path)
        partial.mkdir()
        try:
            yield partial
            partial.replace(path)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            # On a file system without locks, another process may have created it.
            if isinstance(error, OSError) and path.exists():
                raise InputError(f"{path}: already exists; choose a folder that does not exist") from error
            # Messages name what the user will find.
            if type(error) in (InputError, RunError) and str(partial) in str(error):
                raise type(error)(str(error).replace(str(partial), str(path))) from error
            raise
