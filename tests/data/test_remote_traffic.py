"""Bytes and time of reading ten thousand shards of 128 MiB from a URL. Run with -s to see the numbers."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.spec import AbstractFileSystem

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.manifest import ShardRecord, shard_file_names
from mlm_jax.data.order import BLOCK_BYTES, WINDOW_BLOCKS
from mlm_jax.data.piece_digests import PIECE_BYTES, piece_digests
from mlm_jax.data.sources import open_run_data
from mlm_jax.data.totals import Totals, manifest_content
from mlm_jax.text.tokenizer import Tokenizer

pytestmark = pytest.mark.release

SHARD_TOKENS = 1 << 26
PIECES = SHARD_TOKENS * 2 // PIECE_BYTES


class VirtualFileSystem(AbstractFileSystem):
    """Shards that are computed when they are read. Counts bytes, and has a latency and a bandwidth."""

    protocol = "virtual"
    cachable = False
    files: ClassVar[dict[str, bytes]]
    sizes: dict[str, int]
    pool: list[bytes]
    fetched = 0
    latency = 0.0
    bandwidth = float("inf")
    lock = threading.Lock()
    free_at = 0.0

    @classmethod
    def piece(cls, shard: int, piece: int) -> bytes:
        content = cls.pool[(7 * shard + piece) % len(cls.pool)]
        # The first one begins with the number of the shard, so that shards are not the same.
        number = np.array([5 + shard % 100, 5 + shard // 100], np.uint16).tobytes()
        return content if piece else number + content[len(number) :]

    def find(self, path: str, **_: Any) -> dict[str, dict[str, int]]:
        return {f"{path}/{name}": {"size": size} for name, size in self.sizes.items()}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        name = path.partition("data/")[2]
        if name in self.files:
            content = self.files[name]
        elif name.startswith("tokens-"):
            assert start is not None
            assert end is not None
            shard, first = int(name[7:12]), start // PIECE_BYTES
            pieces = range(first, -(-end // PIECE_BYTES))
            content = b"".join(self.piece(shard, piece) for piece in pieces)
            content = content[start - first * PIECE_BYTES :][: end - start]
        else:
            raise FileNotFoundError(path)
        with self.lock:
            kind = type(self)
            kind.fetched += len(content)
            kind.free_at = max(kind.free_at, time.monotonic()) + len(content) / self.bandwidth
            ready = kind.free_at + self.latency
        time.sleep(max(0, ready - time.monotonic()))
        return content

    def get_file(self, path: str, target: str, **_: Any) -> None:
        Path(target).write_bytes(self.cat_file(path))


fsspec.register_implementation("virtual", VirtualFileSystem, clobber=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    kind = VirtualFileSystem
    kind.fetched, kind.latency, kind.bandwidth = 0, 0.0, float("inf")


def publish(num_shards: int, tmp_path: Path) -> None:
    """Publishes a prepared folder of so many shards at virtual://data."""
    words = [f"w{number}" for number in range(200)]
    tokenizer = Tokenizer.train([" ".join(words)] * 3, 240)
    tokenizer.save(tmp_path / "tokenizer")
    rng = np.random.default_rng(0)
    pool = [rng.integers(5, 200, PIECE_BYTES // 2, np.uint16).tobytes() for _ in range(61)]
    VirtualFileSystem.pool = pool
    digests = piece_digests(b"".join(pool)) * (PIECES // len(pool) + 2)
    files = {f"tokenizer/{file.name}": file.read_bytes() for file in (tmp_path / "tokenizer").iterdir()}
    sizes, records = {}, []
    for shard in range(num_shards):
        first = 7 * shard % len(pool) * 8
        tokens, documents, _, checksums = shard_file_names(shard)
        own = piece_digests(VirtualFileSystem.piece(shard, 0))
        files[checksums] = own + digests[first + len(own) : first + PIECES * 8]
        sha256 = hashlib.sha256(files[checksums]).hexdigest()
        records.append(ShardRecord(1, SHARD_TOKENS, f"{shard:064x}", "0" * 64, checksums_sha256=sha256))
        sizes |= {tokens: SHARD_TOKENS * 2, documents: 16, checksums: len(files[checksums])}
    settings = {
        "separator": "sep",
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    totals = Totals(num_shards, num_shards * SHARD_TOKENS, 0, 0, 0)
    VirtualFileSystem.files = files | {"manifest.json": manifest_content(settings, totals, records)}
    VirtualFileSystem.sizes = sizes
    assert json.loads(VirtualFileSystem.files["manifest.json"])


def batches(size: int, hosts: int = 1) -> TrainingBatches:
    config = DataConfig(path="virtual://data", sequence_length=256, order="windowed")
    return TrainingBatches(
        open_run_data(config).train,
        BatchSizes(size),
        0,
        lambda rows: np.array_split(np.arange(rows), hosts)[0],
    )


def fetched_by(read: TrainingBatches, num_steps: int, *, reads: int = 40) -> float:
    """Returns the bytes fetched in so many steps; the rows of only some of them are read, to save time."""
    VirtualFileSystem.fetched = 0
    stop = read.sizes.examples(num_steps)
    with read.rows.fetch_ahead(read._order, stop, with_words=False) as ahead:
        for step in range(num_steps):
            positions = read._positions(step)
            if step < 2 or step % (num_steps // reads) == 0:
                read._read(positions)
            ahead.advance(positions)
            while read.rows._cache._jobs:
                time.sleep(0.001)
        while read.rows._cache._num_threads:
            time.sleep(0.01)
    return VirtualFileSystem.fetched


@pytest.mark.usefixtures("home")
def test_an_epoch_fetches_at_most_a_tenth_more_than_it_trains_on(tmp_path: Path) -> None:
    publish(24, tmp_path)
    read = batches(4096)
    fetched = fetched_by(read, read.rows.num_rows // 4096)
    ratio = fetched / (24 * SHARD_TOKENS * 2)
    print(f"\nan epoch of 3 GiB: {ratio:.3f} bytes fetched per byte trained on")
    assert ratio < 1.1


@pytest.mark.usefixtures("home")
def test_the_first_two_windows_of_a_large_corpus(tmp_path: Path) -> None:
    publish(10_000, tmp_path)
    read = batches(4096)
    steps = 2 * read._order.window_rows // 4096
    ratio = fetched_by(read, steps) / (steps * 4096 * 508)
    print(
        f"\n2 GiB of 1.3 TB: {ratio:.3f} bytes fetched per byte trained on, with the checksums of their shards"
    )
    assert ratio < 1.1


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("hosts", [8, 64, 128])
def test_a_host_fetches_its_share(tmp_path: Path, hosts: int) -> None:
    publish(1000, tmp_path)
    read = batches(4096, hosts)
    steps = read._order.window_rows // 4096
    ratio = fetched_by(read, steps) / (steps * 4096 // hosts * 508)
    print(f"\na host of {hosts}: {ratio:.3f} bytes fetched per byte it trains on, with the checksums")
    # A host whose lane is shared by two fetches it twice.
    assert ratio < 1.1 * max(1, hosts / 64) * (1 + 0.04)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("size", [256, 4096])
def test_the_first_batch_on_a_slow_network(tmp_path: Path, size: int) -> None:
    publish(10_000, tmp_path)
    VirtualFileSystem.latency, VirtualFileSystem.bandwidth = 0.03, 1e8
    read = batches(size)
    VirtualFileSystem.fetched = 0
    started = time.monotonic()
    stream = read.from_step(0, 10**6, 4)
    next(stream)
    seconds, fetched = time.monotonic() - started, VirtualFileSystem.fetched
    for _ in range(20):
        next(stream)
    later = time.monotonic() - started
    stream.close()
    print(
        f"\n100 MB/s, 30 ms: the first batch of {size} rows after {seconds:.1f} s and {fetched / 1e6:.0f} MB, "
        f"20 more after {later:.1f} s"
    )
    assert fetched < WINDOW_BLOCKS * BLOCK_BYTES / 2
