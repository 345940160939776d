"""Remote data in windowed order: the rows of a local copy, from few and verified bytes, whatever the network does."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data import order
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import open_run_data
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError, RunError
from mlm_jax.preparation.prepare import prepare
from mlm_jax.shards import folders, piece_digests, remote_pieces
from mlm_jax.shards.token_store import open_shards
from mlm_jax.text.tokenizer import Tokenizer

URL = "faulty://bucket/data"
LENGTH, BATCH = 18, 256
# Bytes of pieces and blocks, and blocks of a window, so that a small corpus has several windows.
PIECE, BLOCK, WINDOW = 32, 512, 256

Fault = Callable[[str, int, int], bytes | None]


class FaultyFileSystem(MemoryFileSystem):
    """Files in memory; logs the requests for ranges, and answers some of them with a fault."""

    protocol = "faulty"
    requests: ClassVar[list[tuple[str, int, int]]] = []
    fault: Fault | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if start is None or end is None:
            return super().cat_file(path, start, end, **options)
        name = path.rpartition("/")[2]
        answer = type(self).fault and type(self).fault(name, start, end)
        FaultyFileSystem.requests.append((name, start, end))
        return super().cat_file(path, start, end, **options) if answer is None else answer


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piece_digests, "PIECE_BYTES", PIECE)
        patch.setattr(remote_pieces, "PIECE_BYTES", PIECE)
        patch.setattr(order, "BLOCK_BYTES", BLOCK)
        patch.setattr(order, "WINDOW_BLOCKS", WINDOW)
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    folder = tmp_path_factory.mktemp("local")
    words = [f"w{number}x{number % 7}" for number in range(300)]
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text(
        "\n".join(" ".join(rng.choice(words, rng.integers(1, 80))) for _ in range(1300))
    )
    tokenizer = Tokenizer.train([" ".join(words)] * 3, 400, kind="byte-bpe")
    prepare([str(folder / "text.txt")], tokenizer, folder / "data", shard_tokens=60_000)
    assert (folder / "data" / "words-00000.bin").is_file()
    return folder / "data"


@pytest.fixture
def remote(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(folders, "_RETRY_SECONDS", (0.0, 0.01))
    files = fsspec.filesystem("faulty")
    files.put(str(local), "/bucket/data", recursive=True)
    FaultyFileSystem.requests.clear()
    yield files
    FaultyFileSystem.fault = None
    wait_for_threads()
    files.rm("/bucket", recursive=True)


def batches(
    path: str | Path, hosts: int = 1, host: int = 0, *, words: bool = True, **changes: Any
) -> TrainingBatches:
    config = DataConfig(path=str(path), sequence_length=LENGTH, order="windowed", **changes)
    return TrainingBatches(
        open_run_data(config).train,
        BatchSizes(BATCH),
        seed=0,
        local_rows=lambda size: np.array_split(np.arange(size), hosts)[host],
        with_words=words,
    )


def steps_of_epoch(read: TrainingBatches) -> int:
    return -(-read.rows.num_rows // BATCH)


def assert_same(found: TrainingBatches, expected: TrainingBatches, first: int, last: int) -> None:
    for step, batch in zip(range(first, last), found.from_step(first, last, prefetch=2), strict=True):
        for part, other in zip(batch, expected.batch(step), strict=True):
            np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("packing", ["packed", pytest.param("document", marks=pytest.mark.slow)])
def test_remote_rows_are_those_of_a_local_folder(
    local: Path, remote: MemoryFileSystem, tmp_path: Path, packing: str
) -> None:
    found, expected = (batches(path, packing=packing) for path in (URL, local))
    steps = steps_of_epoch(expected)
    assert expected.rows.num_rows > 3 * WINDOW * expected._order.block_rows, "several windows"
    assert_same(found, expected, 0, steps + 3)
    # A resumed run begins in the middle of a window.
    assert_same(batches(URL, packing=packing), expected, steps // 2, steps // 2 + 5)
    # Whole files are those of checksums and documents.
    whole = [path for path in (tmp_path / "home" / "shards").rglob("*") if path.is_file()]
    kinds = ["checksums"] if packing == "packed" else ["checksums", "documents"]
    assert len(whole) == sum(len(list(local.glob(f"{kind}-*.bin"))) for kind in kinds)


@pytest.mark.parametrize("hosts", [1, *(pytest.param(hosts, marks=pytest.mark.slow) for hosts in (2, 8))])
def test_an_epoch_fetches_little_more_than_it_trains_on(
    local: Path, remote: MemoryFileSystem, hosts: int
) -> None:
    """Each piece once, although pieces of blocks overlap; processes fetch what they read, and few blocks twice."""
    whole = batches(local)
    steps = steps_of_epoch(whole) - 1
    parts = [batches(URL, hosts, host) for host in range(hosts)]
    for step, *shares in zip(range(steps), *(part.from_step(0, steps, 2) for part in parts), strict=True):
        expected = whole.batch(step)
        for field in range(4):
            np.testing.assert_array_equal(np.concatenate([share[field] for share in shares]), expected[field])
    fetched = sum(stop - start for _, start, stop in FaultyFileSystem.requests)
    trained = sum(path.stat().st_size for kind in ("tokens", "words") for path in local.glob(f"{kind}-*.bin"))
    # A block has 16 pieces of tokens and one of words, and a part of one more of each.
    assert 0.95 < fetched / trained < 1.15 + 0.02 * (hosts - 1)


def test_the_next_window_is_fetched_at_the_pace_of_the_steps(local: Path, remote: MemoryFileSystem) -> None:
    read = batches(URL, words=False)
    window = read._order.window_rows // BATCH
    fetched = []
    with read.rows.fetch_ahead(read._order, 2 * window * BATCH, with_words=False) as ahead:
        for step in range(2 * window):
            ahead.advance(read._positions(step))
            wait_for_threads()
            fetched.append(
                sum(stop - start for _, start, stop in FaultyFileSystem.requests) / (WINDOW * BLOCK)
            )
    # A lane has four blocks per window.
    for step, expected in ((0, 1.3), (window * 3 // 8, 1.55), (window * 5 // 8, 1.8)):
        assert abs(fetched[step] - expected) < 0.1
    # The second window is there before its first step, and the third is not read.
    assert fetched[window - 1] > 1.95
    assert fetched[-1] < 2.2


@pytest.mark.slow
def test_memory_is_bounded(local: Path, remote: MemoryFileSystem) -> None:
    read = batches(URL)
    cache = read.rows._cache
    most = 0
    for _ in read.from_step(0, steps_of_epoch(read), prefetch=2):
        most = max(most, cache._bytes)
        assert cache._bytes <= 2.5 * WINDOW * BLOCK
    assert most > 1.5 * WINDOW * BLOCK
    assert cache._bytes == 0
    assert not cache._stretches
    assert not cache._by_piece
    # A process with an eighth of the rows needs an eighth of the memory.
    read = batches(URL, 8, 3)
    for _ in read.from_step(0, 40, prefetch=2):
        assert read.rows._cache._bytes <= 2.5 * WINDOW * BLOCK / 8


def test_the_first_batch_waits_only_for_its_own_pieces(local: Path, remote: MemoryFileSystem) -> None:
    go_on = threading.Event()

    def block_large(name: str, start: int, end: int) -> None:
        if end - start > 8 * PIECE:
            assert go_on.wait(60)

    FaultyFileSystem.fault = block_large
    stream = batches(URL, words=False).from_step(0, 2, prefetch=2)
    np.testing.assert_array_equal(next(stream).token_ids, batches(local).batch(0).token_ids)
    assert sum(stop - start for _, start, stop in FaultyFileSystem.requests) < 0.75 * WINDOW * BLOCK
    go_on.set()
    deadline = time.monotonic() + 30
    while not any(stop - start > 8 * PIECE for _, start, stop in list(FaultyFileSystem.requests)):
        assert time.monotonic() < deadline, "blocks are fetched ahead"
        time.sleep(0.01)
    stream.close()


def first_time(answer: Callable[[], bytes | None]) -> Fault:
    """Returns a fault in the first answer for each range."""
    seen = set()

    def fault(name: str, start: int, end: int) -> bytes | None:
        if (name, start) in seen:
            return None
        seen.add((name, start))
        return answer()

    return fault


def fail() -> bytes:
    raise OSError("503 Slow Down")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            fail,
            r"tokens-0000\d\.bin: bytes [\d,]+ to [\d,]+: download failed \(OSError: 503 Slow Down\); trying again",
        ),
        (lambda: b"short", r"download failed \(EOFError: 5 bytes instead of [\d,]+\); trying again in 0 s"),
    ],
)
def test_failures_are_repeated_with_a_word(
    local: Path, remote: MemoryFileSystem, answer: Callable[[], bytes | None], said: str
) -> None:
    FaultyFileSystem.fault = first_time(answer)
    with pytest.warns(UserWarning, match=said):
        assert_same(batches(URL), batches(local), 0, 10)


def flipped(files: MemoryFileSystem, name: str, start: int, end: int) -> bytes:
    content = bytearray(MemoryFileSystem.cat_file(files, f"/bucket/data/{name}", start, end))
    content[len(content) // 2] ^= 4
    return bytes(content)


def test_a_wrong_answer_is_fetched_again(local: Path, remote: MemoryFileSystem) -> None:
    seen = set()

    def fault(name: str, start: int, end: int) -> bytes | None:
        if (name, start) in seen:
            return None
        seen.add((name, start))
        return flipped(remote, name, start, end)

    FaultyFileSystem.fault = fault
    with pytest.warns(UserWarning, match="do not match their checksums; fetching them again"):
        assert_same(batches(URL), batches(local), 0, 10)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (
            lambda *_: fail(),
            r"tokens-0000\d\.bin: bytes [\d,]+ to [\d,]+: download failed \(OSError: 503 Slow Down\); check",
        ),
        (
            lambda *_: b"",
            r"bytes [\d,]+ to [\d,]+: download failed \(EOFError: 0 bytes instead of [\d,]+\); check the network",
        ),
        (
            lambda name, start, end: flipped(fsspec.filesystem("faulty"), name, start, end),
            r"tokens-0000\d\.bin: bytes [\d,]+ to [\d,]+ do not match their checksums, again; copy the complete",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*trying again", "ignore:.*fetching them again")
def test_lasting_failures_end_the_run_with_the_file_and_the_bytes(
    remote: MemoryFileSystem, fault: Fault, error: str
) -> None:
    FaultyFileSystem.fault = fault
    with pytest.raises(RunError, match=error):
        list(batches(URL, words=False).from_step(0, 3, prefetch=2))


@pytest.mark.filterwarnings("ignore:.*trying again")
def test_a_failure_of_what_nobody_waits_for_does_no_harm(local: Path, remote: MemoryFileSystem) -> None:
    shard, expected = batches(URL).rows._shards[0], open_shards(local).shards[0]
    FaultyFileSystem.fault = lambda *_: fail()
    shard.fetch_later(0, 1000, with_words=True)
    wait_for_threads()
    FaultyFileSystem.fault = None
    starts = np.arange(0, 1000, 10)
    np.testing.assert_array_equal(shard.token_windows(starts, 16), expected.token_windows(starts, 16))


def wait_for_threads() -> None:
    """Waits until all requests have ended."""
    deadline = time.monotonic() + 30
    while any(thread.name == "pieces" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_damage_in_the_store_is_found_in_the_piece(remote: MemoryFileSystem) -> None:
    name = "/bucket/data/tokens-00001.bin"
    content = bytearray(remote.cat_file(name))
    content[5000] ^= 1
    remote.pipe_file(name, bytes(content))
    read = batches(URL, words=False)
    rows = np.arange(read.rows.num_rows)
    with (
        pytest.warns(UserWarning, match="fetching them again"),
        pytest.raises(RunError, match=r"tokens-00001\.bin: bytes [\d,]+ to [\d,]+ do not match"),
    ):
        read.rows.read(rows)


def test_a_shard_removed_during_a_run_is_reported(remote: MemoryFileSystem) -> None:
    read = batches(URL, words=False)
    remote.rm_file("/bucket/data/tokens-00001.bin")
    with pytest.raises(InputError, match=r"tokens-00001\.bin: missing; copy the complete"):
        list(read.from_step(0, 100, prefetch=2))


def test_waiting_is_reported(local: Path, remote: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_pieces, "_SLOW_SECONDS", 0.05)
    FaultyFileSystem.fault = lambda *_: time.sleep(0.12)
    with pytest.warns(UserWarning, match=r"bin: waiting for bytes [\d,]+ to [\d,]+ for 0\.1 s"):
        found = batches(URL, words=False).batch(0)
    np.testing.assert_array_equal(found.token_ids, batches(local).batch(0).token_ids)


def test_data_of_earlier_versions_are_read_as_whole_shards(local: Path, remote: MemoryFileSystem) -> None:
    manifest = json.loads(remote.cat_file("/bucket/data/manifest.json"))
    assert open_shards(URL).fingerprint == manifest["fingerprint"]
    for record in manifest["shards"]:
        del record["checksums_sha256"]
    remote.pipe_file("/bucket/data/manifest.json", json.dumps(manifest).encode())
    for file in remote.glob("/bucket/data/checksums-*.bin"):
        remote.rm_file(file)
    with pytest.warns(UserWarning, match=r"did not store the checksums of pieces, so whole shards") as said:
        found = batches(URL)
    assert sum("whole shards" in str(warning.message) for warning in said) == 1
    assert found.rows._cache is None
    assert_same(found, batches(local), 0, 3)


def test_the_checksums_are_verified_like_other_files(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    copy = shutil.copytree(local, tmp_path / "data")
    file = copy / "checksums-00001.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"checksums-00001\.bin: damaged"):
        verify_shards(copy)
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"checksums-00001\.bin: \d+ bytes, expected \d+"):
        open_shards(copy)
    file.unlink()
    with pytest.raises(InputError, match=r"checksums-00001\.bin: missing"):
        open_shards(copy)


def test_the_end_of_the_steps_ends_the_requests(remote: MemoryFileSystem) -> None:
    read = batches(URL)
    stream = read.from_step(0, 1000, prefetch=2)
    FaultyFileSystem.fault = lambda *_: time.sleep(0.005)
    next(stream)
    stream.close()
    wait_for_threads()
    assert read.rows._cache._bytes < WINDOW * BLOCK / 4
    # What is read later is fetched again.
    assert len(replace(read, seed=1).batch(3).token_ids) == BATCH


def test_rows_that_are_being_read_at_the_end_of_the_steps_still_arrive(
    local: Path, remote: MemoryFileSystem
) -> None:
    """Grain's threads are not stopped, and the process waits for them."""
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def wait(*_: object) -> None:
        begun.release()
        assert go_on.wait(60)

    read, found = batches(URL, words=False), []
    FaultyFileSystem.fault = wait
    for number in range(remote_pieces._THREADS):
        read.rows._shards[-1].fetch_later(100 * number, 100 * number + 50, with_words=False)
    for _ in range(remote_pieces._THREADS):
        assert begun.acquire(timeout=30)
    # No thread is left for what this reader waits for.
    reader = threading.Thread(target=lambda: found.append(read.batch(0)), daemon=True)
    reader.start()
    while not read.rows._cache._jobs:
        time.sleep(0.01)
    time.sleep(0.2)
    read.rows._cache.clear()
    go_on.set()
    reader.join(30)
    np.testing.assert_array_equal(found[0].token_ids, batches(local).batch(0).token_ids)
