"""A folder of prepared data, on this machine or behind a URL, whose files are then kept on this machine.

    $MLM_JAX_HOME/shards/AB/ABCD…   a file of a remote folder under its sha256

A file is fetched whole when it is first used, and has its name there only once its content is checked. Whatever is
kept stays: rows come in an order that goes to every shard, so the kept files grow to the size of the data.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlm_jax.errors import InputError, RunError
from mlm_jax.files import commit, home, partial_path, remove_abandoned
from mlm_jax.text.file_systems import file_system, is_local

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """The content of the file `name`, or None where there is none."""
        file = self.path / name
        return file.read_bytes() if file.is_file() else None

    def sizes(self, subfolders: Iterable[str]) -> dict[str, int]:
        """The size in bytes of every file that lies directly in one of `subfolders` ("": the folder itself)."""
        sizes = {}
        for subfolder in subfolders:
            prefix = f"{subfolder}/" if subfolder else ""
            with contextlib.suppress(FileNotFoundError), os.scandir(self.path / subfolder) as entries:
                sizes.update({prefix + entry.name: entry.stat().st_size for entry in entries})
        return sizes

    def file(self, name: str, size: int, sha256: str) -> Path:
        """Where the file `name` is."""
        return self.path / name

    @contextlib.contextmanager
    def copy(self, subfolder: str, names: Iterable[str]) -> Iterator[Path]:
        """A path at which the files `names` of `subfolder` are, those that there are."""
        yield self.path / subfolder


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL, and what its content has to be."""

    url: str
    size: int
    sha256: str

    @property
    def kept_path(self) -> Path:
        """Where it is kept on this machine once it was fetched."""
        return home() / "shards" / self.sha256[:2] / self.sha256

    def fetch(self) -> Path:
        """Its path on this machine; of all threads and processes that ask for it, one fetches it.

        Raises:
            InputError: there is no such file, or its content is not what it has to be.
            RunError: it could not be fetched or kept.
        """
        path = self.kept_path
        if path.exists():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_name(f"{path.name}.lock").open("wb") as lock:
                # It saves fetching twice and nothing else: without locks each process fetches under a name of its own.
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._fetch(path)
                # Only now: who opened it before sees that the file is there, and nobody waits for another lock.
                Path(lock.name).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be kept: {error}; set MLM_JAX_HOME to a folder that can"
            ) from error
        return path

    def _fetch(self, path: Path) -> None:
        remove_abandoned(path)
        free = shutil.disk_usage(path.parent).free
        if free < self.size:
            raise RunError(
                f"{path.parent.parent}: {free / 1e9:.1f} GB free, {self.url} is {self.size / 1e9:.1f} GB; set "
                "MLM_JAX_HOME to a disk that holds all of the data"
            )
        partial = partial_path(path)
        try:
            files, location = file_system(self.url)
            try:
                _asked(self.url, lambda: files.get_file(location, str(partial)))
            except FileNotFoundError as error:
                raise InputError(f"{self.url}: missing; copy the whole prepared folder there") from error
            with partial.open("r+b") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != self.sha256:
                    raise InputError(
                        f"{self.url}: damaged: its sha256 is {found}, the manifest says {self.sha256}"
                    )
                commit(file, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind an fsspec URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes | None:
        """The content of the file `name`, or None where there is none."""
        files, location = file_system(f"{self.url}/{name}")
        with contextlib.suppress(FileNotFoundError):
            return _asked(f"{self.url}/{name}", lambda: files.cat_file(location))
        return None

    def sizes(self, subfolders: Iterable[str]) -> dict[str, int]:
        """The size in bytes of every file below the folder, from one listing."""
        files, location = file_system(self.url)
        found = _asked(self.url, lambda: files.find(location, detail=True))
        prefix = location.strip("/") + "/"
        return {name.lstrip("/").removeprefix(prefix): info["size"] for name, info in found.items()}

    def file(self, name: str, size: int, sha256: str) -> RemoteFile:
        """The file `name`, of `size` bytes and that checksum, to be fetched."""
        return RemoteFile(f"{self.url}/{name}", size, sha256)

    @contextlib.contextmanager
    def copy(self, subfolder: str, names: Iterable[str]) -> Iterator[Path]:
        """A path at which the files `names` of `subfolder` are, those that there are, until the block ends."""
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                content = self.read(f"{subfolder}/{name}")
                if content is not None:
                    (Path(folder) / name).write_bytes(content)
            yield Path(folder)


Folder = LocalFolder | RemoteFolder


def open_folder(path: str | Path) -> Folder:
    """The folder at a path or URL.

    Raises:
        InputError: the URL's protocol is unknown, or the package that speaks it is not installed.
    """
    if not is_url(path):
        return LocalFolder(Path(path))
    files, location = file_system(str(path))
    return LocalFolder(Path(location)) if is_local(files) else RemoteFolder(str(path).rstrip("/"))


def is_url(path: str | Path) -> bool:
    """Whether `path` names a protocol: `pathlib` would make one slash of its two."""
    return isinstance(path, str) and "://" in path


def _asked(url: str, request: Callable[[], ResultT]) -> ResultT:
    """What a remote file system answers; it has errors of its own for whatever keeps it from answering."""
    try:
        return request()
    except FileNotFoundError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise RunError(f"{url}: not fetched ({type(error).__name__}: {text[:200]})") from error
