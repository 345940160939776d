"""Folders of prepared data, at a path or URL; remote files are cached on this machine.

    $MLM_JAX_HOME/shards/AB/ABCD…   a cached file, named by its sha256

A whole file is downloaded on first use, and appears in the cache once its checksum is verified. Nothing is evicted:
in the global order, training reads rows from all shards, so the cache grows to the size of the data. In the windowed
order it reads pieces of files instead (`remote_pieces.py`). Downloads of data that fail are tried again, with a
warning.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlm_jax.corpus.file_systems import file_system, is_local
from mlm_jax.errors import InputError, RunError
from mlm_jax.files.atomic import commit, partial_path, remove_abandoned
from mlm_jax.files.home import home

ResultT = TypeVar("ResultT")

# Waits between the attempts to download data.
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """Returns the content of the file `name`, or None if there is none."""
        file = self.path / name
        return file.read_bytes() if file.is_file() else None

    def sizes(self, subfolders: Iterable[str]) -> dict[str, int]:
        """Returns the size in bytes of every file directly in one of `subfolders` ("" is the folder itself)."""
        sizes = {}
        for subfolder in subfolders:
            prefix = f"{subfolder}/" if subfolder else ""
            with contextlib.suppress(FileNotFoundError), os.scandir(self.path / subfolder) as entries:
                sizes.update({prefix + entry.name: entry.stat().st_size for entry in entries})
        return sizes

    def file(self, name: str, size: int, sha256: str) -> Path:
        """Returns the path of the file `name`."""
        return self.path / name

    @contextlib.contextmanager
    def copy(self, subfolder: str, names: Iterable[str]) -> Iterator[Path]:
        """Yields a local folder with the existing files among `names` of `subfolder`."""
        yield self.path / subfolder


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL, with its expected size in bytes and sha256."""

    url: str
    size: int
    sha256: str

    @property
    def kept_path(self) -> Path:
        """Path of the file in the cache."""
        return home() / "shards" / self.sha256[:2] / self.sha256

    def fetch(self) -> Path:
        """Returns the path of the local copy. Of concurrent threads and processes, one downloads the file.

        Raises:
            InputError: the file does not exist, or its content does not match its sha256.
            RunError: the file could not be downloaded or stored.
        """
        path = self.kept_path
        if path.exists():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(f"{path.name}.lock").open("wb") as lock:
                # Without locks, each process downloads to its own temporary file: more traffic, the same result.
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._fetch(path)
                # Removed last: processes waiting for this lock find the file, and later ones need no lock.
                Path(lock.name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be stored: {error}; set MLM_JAX_HOME to a writable folder"
            ) from error
        return path

    def fetch_range(self, start: int, stop: int) -> bytes:
        """Returns bytes `start` to `stop` - 1 of the file, which are not verified or kept.

        Raises:
            InputError: the file does not exist.
            RunError: the bytes could not be downloaded, or the answer was too short, again and again.
        """
        files, location = file_system(self.url)

        def request() -> bytes:
            content: bytes = files.cat_file(location, start=start, end=stop)
            if len(content) != stop - start:
                raise EOFError(f"{len(content):,} bytes instead of {stop - start:,}")
            return content

        try:
            return _request(f"{self.url}: bytes {start:,} to {stop - 1:,}", request, _RETRY_SECONDS)
        except FileNotFoundError as error:
            raise self._missing() from error

    def _missing(self) -> InputError:
        return InputError(f"{self.url}: missing; copy the complete prepared folder there")

    def _fetch(self, path: Path) -> None:
        remove_abandoned(path)
        free = shutil.disk_usage(path.parent).free
        if free < self.size:
            raise RunError(
                f"{path.parent.parent}: {free / 1e9:.1f} GB free, {self.url} is {self.size / 1e9:.1f} GB; set "
                "MLM_JAX_HOME to a disk with room for all of the data"
            )
        partial = partial_path(path)
        try:
            files, location = file_system(self.url)
            try:
                _request(self.url, lambda: files.get_file(location, str(partial)), _RETRY_SECONDS)
            except FileNotFoundError as error:
                raise self._missing() from error
            with partial.open("r+b") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != self.sha256:
                    raise InputError(
                        f"{self.url}: damaged: its sha256 is {found}, expected {self.sha256} (manifest)"
                    )
                commit(file, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class RemoteFolder:
    """A folder at an fsspec URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes | None:
        """Returns the content of the file `name`, or None if there is none."""
        files, location = file_system(f"{self.url}/{name}")
        with contextlib.suppress(FileNotFoundError):
            return _request(f"{self.url}/{name}", lambda: files.cat_file(location))
        return None

    def sizes(self, subfolders: Iterable[str]) -> dict[str, int]:
        """Returns the size in bytes of every file below the folder, from one listing."""
        files, location = file_system(self.url)
        found = _request(self.url, lambda: files.find(location, detail=True))
        prefix = location.strip("/") + "/"
        return {name.lstrip("/").removeprefix(prefix): info["size"] for name, info in found.items()}

    def file(self, name: str, size: int, sha256: str) -> RemoteFile:
        """Returns the file `name` with its expected size and checksum; downloads nothing."""
        return RemoteFile(f"{self.url}/{name}", size, sha256)

    @contextlib.contextmanager
    def copy(self, subfolder: str, names: Iterable[str]) -> Iterator[Path]:
        """Yields a temporary folder with the existing files among `names` of `subfolder`."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                content = self.read(f"{subfolder}/{name}")
                if content is not None:
                    (Path(folder) / name).write_bytes(content)
            yield Path(folder)


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | Path) -> Folder:
    """Returns the folder at a path or URL.

    Raises:
        InputError: the URL's protocol is unknown, or the package that implements it is not installed.
    """
    if not is_url(path):
        return LocalFolder(Path(path))
    files, location = file_system(str(path))
    return LocalFolder(Path(location)) if is_local(files) else RemoteFolder(str(path).rstrip("/"))


def is_url(path: str | Path) -> bool:
    """Returns True if `path` has a protocol. Such a path must not become a `Path`, which merges the two slashes."""
    return isinstance(path, str) and "://" in path


def _request(url: str, request: Callable[[], ResultT], retry_seconds: Sequence[float] = ()) -> ResultT:
    """Returns the result of a remote request. Converts the various errors of file systems to RunError.

    A request that fails is repeated after each of `retry_seconds`, with a warning. FileNotFoundError is passed on.
    """
    for seconds in (*retry_seconds, None):
        try:
            return request()
        except FileNotFoundError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            failure = f"{url}: download failed ({type(error).__name__}: {text[:200]})"
            if seconds is None or isinstance(error, PermissionError):
                advice = "; check the network and the credentials, then rerun the same command"
                raise RunError(f"{failure}{advice if retry_seconds else ''}") from error
            warnings.warn(f"{failure}; trying again in {seconds:g} s", stacklevel=2)
            time.sleep(seconds)
    raise AssertionError
