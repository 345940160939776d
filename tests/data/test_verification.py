"""Prepared data are compared with their checksums once, in the background, and damage is named."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data import verification
from mlm_jax.data.batches import Rows, TrainingBatches
from mlm_jax.data.shards import open_shards
from mlm_jax.data.sources import open_run_data
from mlm_jax.data.verification import StoredFile, Verification, verify_shards
from mlm_jax.errors import RunError
from tests.run_small import prepared, tokenizer


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of prepared data, and a home folder of its own."""
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verification, "_SETTLED_SECONDS", -1e9)
    return shutil.copytree(prepared(), tmp_path / "data")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names: list[str] = []
    damage = StoredFile.damage

    def noted(file: StoredFile, is_stopped: Callable[[], bool]) -> str | None:
        names.append(file.path.name)
        return damage(file, is_stopped)

    monkeypatch.setattr(StoredFile, "damage", noted)
    return names


def flip(file: Path, position: int = 100) -> None:
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1
    file.write_bytes(content)


def compare(*folders: Path) -> None:
    with Verification(map(open_shards, folders)) as verifying:
        verifying.wait()


FILES = ["tokens-00000.bin", "documents-00000.bin", "checksums-00000.bin"]


def test_files_that_matched_are_not_read_again(data: Path, read: list[str]) -> None:
    compare(data)
    compare(data)
    assert read == FILES
    # The same content, written again, which may be any content.
    (data / FILES[0]).write_bytes((data / FILES[0]).read_bytes())
    compare(data, data)
    assert read == [*FILES, FILES[0]]
    compare(shutil.copytree(data, data.with_name("copy")))
    assert read == [*FILES, FILES[0], *FILES]


def test_a_change_is_noticed_whatever_its_time_says(data: Path) -> None:
    compare(data)
    before = (data / FILES[0]).stat()
    flip(data / FILES[0])
    os.utime(data / FILES[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RunError, match=f"{FILES[0]}: damaged: its sha256 is"):
        compare(data)


def test_a_file_that_was_just_written_is_not_remembered(
    data: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again without a visible change of its time."""
    monkeypatch.setattr(verification, "_SETTLED_SECONDS", 3600.0)
    compare(data)
    compare(data)
    assert read == [*FILES, *FILES]


@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_found_every_time(data: Path, name: str) -> None:
    flip(data / name)
    for _ in range(2):
        with pytest.raises(RunError, match=rf"{data / name}: damaged: .*; prepare the folder again"):
            compare(prepared(), data)
    (data / name).unlink()
    with Verification([open_shards(prepared())]) as verifying:
        verifying.wait()


def test_a_file_that_disappears_is_named(data: Path) -> None:
    store = open_shards(data)
    (data / FILES[1]).unlink()
    with (
        Verification([store]) as verifying,
        pytest.raises(RunError, match=f"{FILES[1]}: cannot be read: No such"),
    ):
        verifying.wait()


def test_an_error_while_comparing_is_reported(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: StoredFile, is_stopped: Callable[[], bool]) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(StoredFile, "damage", fails)
    with pytest.raises(RunError, match="could not be compared with their checksums: no memory"):
        compare(data)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"x": 1}', b"\xff"])
def test_damaged_notes_are_ignored(data: Path, read: list[str], content: bytes) -> None:
    compare(data)
    (notes,) = (data.parent / "home" / "verified").iterdir()
    notes.write_bytes(content)
    compare(data)
    assert read == [*FILES, *FILES]


def test_a_home_that_cannot_be_written_does_no_harm(data: Path, read: list[str]) -> None:
    (data.parent / "home").write_text("a file")
    compare(data)
    compare(data)
    assert read == [*FILES, *FILES]


def test_stopping_does_not_wait_for_the_end(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run waits neither before it saves nor when it ends."""
    reading = threading.Event()

    def endless(file: StoredFile, is_stopped: Callable[[], bool]) -> None:
        reading.set()
        while not is_stopped():
            time.sleep(0.01)

    monkeypatch.setattr(StoredFile, "damage", endless)
    with Verification([open_shards(data)]) as verifying:
        assert reading.wait(60)
        verifying.check()
        verifying.wait(lambda: True)
    assert not verifying._thread.is_alive()
    assert not (data.parent / "home").exists()


def test_verifying_remembers_too(data: Path, read: list[str]) -> None:
    verify_shards(data)
    verify_shards(data)
    assert read == [*FILES, *FILES], "asked for, it reads everything"
    compare(data)
    assert read == [*FILES, *FILES]


def rows_of(data: Path, packing: str = "packed") -> Rows:
    config = DataConfig(path=str(data), sequence_length=20, packing=packing)  # type: ignore[arg-type]
    return open_run_data(config).train


@pytest.mark.parametrize("mapped", [True, False])
def test_an_id_beyond_the_vocabulary_is_named_with_its_position(
    data: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlm_jax.data.shards._MAX_MAPPED_SHARDS", 10 if mapped else 0)
    tokens = np.fromfile(data / FILES[0], "<u2")
    tokens[777] = 60_000
    tokens.tofile(data / FILES[0])
    rows = rows_of(data)
    message = (
        f"{data / FILES[0]}: damaged: token 777 has the id 60000, must be below {tokenizer().vocabulary_size}"
    )
    with pytest.raises(RunError, match=message):
        rows.read(np.arange(rows.num_rows))
    # Also from the threads that read ahead.
    with pytest.raises(RunError, match=message):
        list(TrainingBatches(rows, BatchSizes(8), seed=0).from_step(0, 200, prefetch=2))


@pytest.mark.parametrize(
    ("index", "offset", "message"),
    [
        (3, 0, "offset 3 is 0, must be from [0-9]+, the one before"),
        (3, 2**63, "offset 3 is 9223372036854775808, must be from"),
        (0, 5, "from 5 to [0-9]+, must be from 0 to"),
        (-1, -1, "from 0 to [0-9]+, must be from 0 to [0-9]+, the number of tokens"),
    ],
)
def test_damaged_offsets_are_named_with_their_position(
    data: Path, index: int, offset: int, message: str
) -> None:
    offsets = np.fromfile(data / FILES[1], "<u8")
    offsets[index] = offset if offset >= 0 else offsets[index] - 1
    offsets.tofile(data / FILES[1])
    with pytest.raises(RunError, match=f"{data / FILES[1]}: damaged: {message}"):
        rows_of(data, "document")


def test_offsets_that_are_damaged_after_they_were_counted_are_named(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more documents than are counted one by one, offsets are read again with every batch."""
    monkeypatch.setattr("mlm_jax.data.packing._MAX_COUNTS", 32)
    rows_of(data, "document")
    offsets = np.fromfile(data / FILES[1], "<u8")
    offsets[40] = 2**40
    offsets.tofile(data / FILES[1])
    rows = rows_of(data, "document")
    with pytest.raises(RunError, match=f"{FILES[1]}: damaged: offset 40 is {2**40}, must be from"):
        rows.read(np.arange(rows.num_rows))


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"a": "\xff"}', b'{"/": {"b": 1}}'])
def test_damaged_notes_are_replaced(content: bytes, data: Path, read: list[str]) -> None:
    compare(data)
    (notes,) = (data.parent / "home" / "verified").iterdir()
    notes.write_bytes(content)
    compare(data)
    compare(data)
    assert read == FILES * 2
