"""All forms of the row index give the same rows, and opening and seeking take constant time at any scale."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.config import DataConfig
from mlm_jax.data.batches import Rows
from mlm_jax.data.manifest import ShardRecord, content_fingerprint
from mlm_jax.data.packing import DocumentRows, runs
from mlm_jax.data.prepare import prepare
from mlm_jax.data.shards import Shard, TokenStore, open_shards
from mlm_jax.errors import InputError, RunError
from mlm_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 3, 200)


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(301)]
    (folder / "a.txt").write_text("\n".join(texts))
    prepare([str(folder / "a.txt")], tokenizer, folder / "data", shard_tokens=900)
    assert len(open_shards(folder / "data").shards) > 5
    return folder / "data"


def rows_of(prepared: Path, tokenizer: Tokenizer, packing: str) -> np.ndarray:
    rows = Rows(open_shards(prepared), tokenizer, DataConfig(sequence_length=16, packing=packing))
    # Unordered and with duplicates, because rows are read in ascending order internally.
    asked = np.random.default_rng(1).integers(0, rows.num_rows, 2 * rows.num_rows)
    every = np.arange(rows.num_rows)
    np.testing.assert_array_equal(rows.read(every)[asked], rows.read(asked))
    return rows.read(every)


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_rows_are_the_same_without_maps(prepared, tokenizer, monkeypatch, packing):
    expected = rows_of(prepared, tokenizer, packing)
    monkeypatch.setattr("mlm_jax.data.shards._MAX_MAPPED_SHARDS", 2)
    monkeypatch.setattr("mlm_jax.data.shards.map_file", None)
    np.testing.assert_array_equal(rows_of(prepared, tokenizer, packing), expected)


@pytest.mark.parametrize("max_counts", [1, 20, 100, 200])
@pytest.mark.parametrize("separator", ["sep", "none"])
@pytest.mark.parametrize("sequence_length", [3, 9, 40])
def test_rows_are_the_same_with_a_count_for_every_kth_document(
    tokenizer, monkeypatch, tmp_path, max_counts, separator, sequence_length
):
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 60))) for _ in range(301)]
    store = TokenStore.from_documents(texts, tokenizer, separator=separator, shard_tokens=900)
    config = DataConfig(sequence_length=sequence_length, packing="document")

    def rows() -> np.ndarray:
        read = Rows(store, tokenizer, config)
        return read.read(np.arange(read.num_rows))

    expected = rows()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("mlm_jax.data.packing._MAX_COUNTS", max_counts)
    np.testing.assert_array_equal(rows(), expected)
    (file,) = (tmp_path / "rows").iterdir()
    assert np.load(file).size <= max_counts + len(store.shards) + 2


def test_counts_are_cached_by_data_and_length(prepared, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("mlm_jax.data.packing._MAX_COUNTS", 50)
    expected = rows_of(prepared, tokenizer, "document")
    counted = []
    count = DocumentRows._counted
    monkeypatch.setattr(DocumentRows, "_counted", lambda self: (counted.append(self), count(self))[1])
    np.testing.assert_array_equal(rows_of(prepared, tokenizer, "document"), expected)
    assert not counted
    store = open_shards(prepared)
    Rows(store, tokenizer, DataConfig(sequence_length=17, packing="document"))
    assert len(counted) == 1
    Rows(replace(store, fingerprint="another"), tokenizer, DataConfig(sequence_length=16, packing="document"))
    assert len(counted) == 2

    for file in (tmp_path / "home" / "rows").iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    np.testing.assert_array_equal(rows_of(prepared, tokenizer, "document"), expected)
    assert len(counted) == 3
    for damage in (lambda data: b"", lambda data: data[:-20] + b"\1" + data[-19:]):
        for file in (tmp_path / "home" / "rows").iterdir():
            file.write_bytes(damage(file.read_bytes()))
        np.testing.assert_array_equal(rows_of(prepared, tokenizer, "document"), expected)
    assert len(counted) == 5
    # Without a writable cache they are counted each time.
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "file"))
    np.testing.assert_array_equal(rows_of(prepared, tokenizer, "document"), expected)


def test_short_reads_are_continued(prepared, tokenizer, monkeypatch):
    """Network file systems return them, and any file system after a signal."""
    expected = rows_of(prepared, tokenizer, "document")
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda descriptor, buffers, offset: preadv(descriptor, [buffers[0][:7]], offset)
    )
    monkeypatch.setattr("mlm_jax.data.shards._MAX_MAPPED_SHARDS", 2)
    np.testing.assert_array_equal(rows_of(prepared, tokenizer, "document"), expected)


def test_a_shard_truncated_during_a_run_is_reported(prepared, tokenizer, monkeypatch, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "data")
    monkeypatch.setattr("mlm_jax.data.shards._MAX_MAPPED_SHARDS", 2)
    rows = Rows(open_shards(folder), tokenizer, DataConfig(sequence_length=16))
    (folder / "tokens-00002.bin").write_bytes(b"")
    with pytest.raises(RunError, match=r"tokens-00002\.bin: truncated since it was opened"):
        rows.read(np.arange(rows.num_rows))


def test_windows_beyond_the_end_repeat_the_last_value(prepared):
    shard = open_shards(prepared).shards[-1]
    for mapped in (True, False):
        windows = replace(shard, mapped=mapped)
        last, end = int(shard.tokens[-1]), shard.num_tokens
        found = windows.token_windows(np.array([end - 1, 0, end - 2]), 4).tolist()
        assert found == [[last] * 4, shard.tokens[:4].tolist(), [int(shard.tokens[-2]), *[last] * 3]]
        assert windows.offset_windows(np.array([shard.num_documents]), 3).tolist() == [[end] * 3]


def test_runs_of_equal_values():
    assert runs(np.array([3, 3, 4, 7, 7, 7])) == [(3, slice(0, 2)), (4, slice(2, 3)), (7, slice(3, 6))]
    assert runs(np.array([], np.int64)) == []


def huge_store(tokenizer: Tokenizer, tokens: int) -> TokenStore:
    shard = Shard(1, tokens, Path("none"), Path("none"), np.dtype("<u2"))
    identity = ("sep", tokenizer.vocabulary_size, tokenizer.fingerprint)
    return TokenStore((shard,) * 10, *identity, "fingerprint")


def test_too_many_rows_are_rejected_with_a_sufficient_length(tokenizer):
    store = huge_store(tokenizer, 10**11)
    with pytest.raises(InputError, match=r"7,936,507,940 rows of 128 .* use data.sequence_length = 235"):
        Rows(store, tokenizer, DataConfig(sequence_length=128))
    with pytest.raises(InputError, match=r"at most 2\*\*32"):
        Rows(store, tokenizer, DataConfig(sequence_length=234))
    assert Rows(store, tokenizer, DataConfig(sequence_length=235)).num_rows <= 2**32


NUM_SHARDS = 10_000
SCALE = """
import os, re, resource, sys, time
from statistics import median
import numpy as np
# Far below the usual limit: opening and reading hold almost no files.
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.config import DataConfig
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import open_run_data

# Of the CPU, because other tests run beside this one.
def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start

config = DataConfig(path=sys.argv[1], sequence_length=512)
opening = median(seconds(open_run_data, config) for _ in range(3))
rows = open_run_data(config).train
assert rows.num_rows == 10_000 * -(-10**8 // 510)
batches = TrainingBatches(rows, BatchSizes(256), seed=0)
batch = batches.batch(10**9)
assert len(set(batch.example_ids // -(-10**8 // 510))) > 200
assert (batch.token_ids[:, 0] == 2).all() and (batch.token_ids[:, 1:-1] == 0).all()
reading = median(seconds(batches.batch, 10**9 + step) for step in range(20))
files = len(os.listdir("/proc/self/fd"))
# The cost of a step without reading its rows.
rows.read = len
seeking = median(seconds(batches.batch, 10**9 + step) for step in range(20))
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000
print(f"open {opening:.2f} s, {peak:.0f} MB; seek {seeking * 1e3:.2f} ms, with 256 rows {reading * 1e3:.1f} ms")
assert opening < 2 and peak < 500 and seeking < 1e-3 and files < 20
"""


@pytest.mark.slow
def test_a_trillion_tokens_in_ten_thousand_shards(tokenizer, tmp_path):
    """Sparse files of zeros: 10**8 tokens and 100,000 documents per shard."""
    folder = tmp_path / "data"
    tokenizer.save(folder / "tokenizer")
    record = ShardRecord(100_000, 10**8, "0" * 64, "0" * 64)
    for number in range(NUM_SHARDS):
        for kind, size in (("tokens", 2 * 10**8), ("documents", 100_001 * 8)):
            with (folder / f"{kind}-{number:05d}.bin").open("wb") as file:
                file.truncate(size)
    identity = ("sep", tokenizer.vocabulary_size, tokenizer.fingerprint)
    manifest = {
        "version": 1,
        "settings": {},
        "totals": dict.fromkeys(("characters", "skipped", "replaced"), 0)
        | {"documents": 100_000 * NUM_SHARDS, "tokens": 10**8 * NUM_SHARDS},
        "fingerprint": content_fingerprint(*identity, [record] * NUM_SHARDS),
        "separator": identity[0],
        "vocabulary_size": identity[1],
        "tokenizer_fingerprint": identity[2],
        "shards": [asdict(record)] * NUM_SHARDS,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    try:
        run = subprocess.run(
            [sys.executable, "-c", SCALE, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    finally:
        shutil.rmtree(folder)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
