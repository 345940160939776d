"""Compares the files of prepared data with the checksums of their manifest: in the background of a run, or on request.

    $MLM_JAX_HOME/verified/FINGERPRINT.json   files of a store that matched, so that the next run need not read them

A file is read again if its size, its times or its inode change. Remote files are also compared when they are
downloaded.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mlm_jax.corpus.progress import track
from mlm_jax.data.folders import RemoteFile
from mlm_jax.data.shards import TokenStore, open_shards
from mlm_jax.data.sources import open_tokenizer
from mlm_jax.errors import InputError, RunError, one_line
from mlm_jax.files.atomic import remove_abandoned, write_atomically
from mlm_jax.files.home import home
from mlm_jax.files.json_files import read_json_object

_BLOCK_BYTES = 1 << 20
# Clocks of file systems are coarse: a file that was written this recently may change again under the same time.
_SETTLED_SECONDS = 2.0
_SECONDS_BETWEEN_NOTES = 30.0

Stamp = list[int]


@dataclass(frozen=True)
class StoredFile:
    """A file on this machine, with its checksum in the manifest."""

    path: Path
    sha256: str

    def stamp(self) -> Stamp | None:
        """Returns what changes if the file does: size, times and inode; None if the file is new or missing."""
        with contextlib.suppress(OSError):
            found = self.path.stat()
            if time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED_SECONDS:
                return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        return None

    def damage(self, is_stopped: Callable[[], bool]) -> str | None:
        """Reads the file. Returns a description of its damage; None if it matches or `is_stopped` returned True."""
        digest, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
        try:
            with self.path.open("rb", buffering=0) as file:
                while size := file.readinto(block):
                    if is_stopped():
                        return None
                    digest.update(memoryview(block)[:size])
        except OSError as error:
            return f"{self.path}: cannot be read: {error.strerror or error}"
        if digest.hexdigest() == self.sha256:
            return None
        return f"{self.path}: damaged: its sha256 is {digest.hexdigest()}, expected {self.sha256} (manifest)"


def verify_shards(path: str | Path) -> TokenStore:
    """Opens a prepared folder and compares all of its files; downloads every file of a remote folder.

    Raises:
        InputError: a file is missing, or does not match its checksum, or the tokenizer is another one; the message
            names the first such file.
    """
    store = open_shards(path)
    for shard in track(store.shards, "download", "shards"):
        for source in (shard.token_source, shard.document_source, shard.word_source, shard.checksum_source):
            if isinstance(source, RemoteFile):
                source.fetch()
    matched = {}
    for file in track(_stored_files(store), "verify", "files"):
        stamp = file.stamp()
        if damage := file.damage(lambda: False):
            raise InputError(f"{damage}; prepare the folder again")
        matched[str(file.path)] = stamp
    _note(store, matched)
    open_tokenizer(path, store)
    return store


class Verification:
    """Compares the files of stores with their checksums in a thread, within a `with` block.

    Files that matched in an earlier run, and have not changed since, are not read.
    """

    def __init__(self, stores: Iterable[TokenStore]) -> None:
        """Reads nothing yet."""
        self._stores = tuple(stores)
        self._damage: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the thread."""
        self._stopped.set()
        self._thread.join()

    def check(self) -> None:
        """Returns at once. Raises RunError if a file has been found damaged so far."""
        if self._damage is not None:
            raise RunError(f"{self._damage}; prepare the folder again")

    def wait(self, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Returns when all files are compared or `is_stopped` returns True. Raises RunError if a file is damaged."""
        while self._thread.is_alive() and not is_stopped():
            self._thread.join(timeout=0.1)
        self.check()

    def _run(self) -> None:
        try:
            _let_others_first()
            self._compare()
        except Exception as error:
            # Otherwise, the data would count as compared.
            self._damage = f"the data could not be compared with their checksums: {one_line(error)}"

    def _compare(self) -> None:
        for store in self._stores:
            known, matched, noted = _notes(store), {}, time.monotonic()
            for file in _stored_files(store):
                stamp = file.stamp()
                if stamp is not None and known.get(str(file.path)) == stamp:
                    continue
                self._damage = file.damage(self._stopped.is_set)
                if self._damage is not None or self._stopped.is_set():
                    break
                matched[str(file.path)] = stamp
                if time.monotonic() - noted > _SECONDS_BETWEEN_NOTES:
                    _note(store, matched)
                    noted = time.monotonic()
            _note(store, matched)
            if self._damage is not None or self._stopped.is_set():
                return


def _stored_files(store: TokenStore) -> list[StoredFile]:
    """Returns the files of a local folder, the downloaded files of a remote one, and nothing for a store in memory."""
    files = []
    for shard, record in zip(store.shards, store.records, strict=False):
        for source, sha256 in (
            (shard.token_source, record.tokens_sha256),
            (shard.document_source, record.documents_sha256),
            (shard.word_source, record.words_sha256),
            (shard.checksum_source, record.checksums_sha256),
        ):
            if sha256 is None:
                continue
            if isinstance(source, Path):
                files.append(StoredFile(source, sha256))
            elif isinstance(source, RemoteFile) and source.kept_path.exists():
                files.append(StoredFile(source.kept_path, sha256))
    return files


def _notes_file(store: TokenStore) -> Path:
    return home() / "verified" / f"{store.fingerprint}.json"


def _notes(store: TokenStore) -> dict[str, Stamp]:
    """Returns the stamps of the files of a store that matched before, by path; empty if there are none or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return read_json_object(_notes_file(store))
    return {}


def _note(store: TokenStore, matched: dict[str, Stamp | None]) -> None:
    """Adds the files that matched, by path, to those of earlier runs, if the home folder is writable."""
    settled = {path: stamp for path, stamp in matched.items() if stamp is not None}
    if not settled:
        return
    file = _notes_file(store)
    with contextlib.suppress(OSError):
        # Copies of the data elsewhere have the same fingerprint.
        kept = {path: stamp for path, stamp in _notes(store).items() if Path(path).exists()}
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(file)
        write_atomically(file, json.dumps(kept | settled).encode())


def _let_others_first() -> None:
    """Gives this thread the lowest priority, where threads have one of their own, so that a step is not slowed down."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
