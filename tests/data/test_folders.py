"""Remote data give the same rows, and each file is downloaded once and verified before it is used."""

import hashlib
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mlm_jax.config import DataConfig
from mlm_jax.data.division import Part
from mlm_jax.data.folders import LocalFolder, RemoteFile, RemoteFolder, open_folder
from mlm_jax.data.merge import merge_parts
from mlm_jax.data.prepare import prepare
from mlm_jax.data.shards import open_shards
from mlm_jax.data.sources import open_run_data
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError, RunError
from mlm_jax.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
WORDS = ["the", "tower", "stands", "in", "a", "city"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
URL = "memory://bucket/data"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    rng = np.random.default_rng(0)
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(
            "\n".join(" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(100))
        )
    tokenizer = Tokenizer.load(folder / "vocab.txt")
    for index in range(2):
        prepare([str(folder / "*.txt")], tokenizer, folder / "data", shard_tokens=500, part=Part(index, 2))
    merge_parts(folder / "data")
    return folder / "data"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def remote(local, home) -> MemoryFileSystem:
    files = fsspec.filesystem("memory")
    files.put(str(local), "/bucket/data", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def kept(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "shards").rglob("*") if path.is_file())


@pytest.mark.parametrize("packing", ["packed", "document"])
@pytest.mark.parametrize("max_mapped", [1, 128])
def test_remote_rows_equal_local_rows(local, remote, home, monkeypatch, packing, max_mapped):
    monkeypatch.setattr("mlm_jax.data.shards._MAX_MAPPED_SHARDS", max_mapped)
    fetched = []
    get_file = MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "get_file",
        lambda self, name, *rest, **options: (fetched.append(name), get_file(self, name, *rest, **options))[
            1
        ],
    )
    config = DataConfig(path=URL, eval_path=URL, sequence_length=16, packing=packing)
    expected = open_run_data(DataConfig(path=str(local), sequence_length=16, packing=packing))
    sources = open_run_data(config)
    assert sources.fingerprint == expected.fingerprint
    assert sources.tokenizer.fingerprint == expected.tokenizer.fingerprint
    assert not [name for name in fetched if "tokens" in name]
    every = np.arange(expected.train.num_rows)
    first = sources.train.read(every[:1])
    assert len([name for name in fetched if "tokens" in name]) == 1
    np.testing.assert_array_equal(first, expected.train.read(every[:1]))
    for rows in (sources.train, sources.evaluation, open_run_data(config).train):
        np.testing.assert_array_equal(rows.read(every), expected.train.read(every))
    assert len(fetched) == len(set(fetched))
    kinds = ["tokens"] if packing == "packed" else ["tokens", "documents"]
    contents = {path.read_bytes() for kind in kinds for path in local.rglob(f"{kind}-*.bin")}
    assert kept(home) == sorted(hashlib.sha256(content).hexdigest() for content in contents)


def test_verification_downloads_and_checks_everything(local, remote, home):
    assert verify_shards(URL).fingerprint == open_shards(local).fingerprint
    assert len(kept(home)) == len(list(local.rglob("*.bin")))


def test_damaged_remote_files_are_rejected(remote, home):
    name = "/bucket/data/part-00000-of-00002/tokens-00000.bin"
    content = bytearray(remote.cat_file(name))
    content[10] ^= 1
    remote.pipe_file(name, bytes(content))
    for _ in range(2):
        with pytest.raises(InputError, match=r"part-00000-of-00002/tokens-00000\.bin: damaged: its sha256"):
            open_shards(URL).shards[0].token_windows(np.array([0]), 3)
    assert not [file for file in kept(home) if not file.endswith(".lock")]


def test_incomplete_remote_folders_are_rejected_when_opened(remote):
    name = "/bucket/data/part-00001-of-00002/documents-00000.bin"
    content = remote.cat_file(name)
    remote.pipe_file(name, content[:-1])
    with pytest.raises(
        InputError, match=rf"{URL}/part-00001-of-00002/documents-00000\.bin: .* bytes, expected"
    ):
        open_shards(URL)
    remote.rm_file(name)
    with pytest.raises(InputError, match=r"documents-00000\.bin: missing"):
        open_shards(URL)
    remote.rm_file("/bucket/data/manifest.json")
    with pytest.raises(InputError, match=f"{URL}: no prepared data here"):
        open_shards(URL)


def test_a_shard_removed_during_a_run_is_reported(remote):
    store = open_shards(URL)
    remote.rm_file("/bucket/data/part-00000-of-00002/tokens-00000.bin")
    with pytest.raises(InputError, match=r"tokens-00000\.bin: missing; copy the complete"):
        store.shards[0].token_windows(np.array([0]), 3)


def test_a_failing_file_system_is_reported_in_one_line(remote, home, monkeypatch):
    store = open_shards(URL)

    def refuse(*_: object, **__: object) -> None:
        raise TimeoutError("no answer\nin 30 s")

    monkeypatch.setattr(MemoryFileSystem, "get_file", refuse)
    monkeypatch.setattr("mlm_jax.data.folders._RETRY_SECONDS", (0.0, 0.001))
    failed = r"tokens-00000\.bin: download failed \(TimeoutError: no answer in 30 s\)"
    with (
        pytest.warns(UserWarning, match=rf"{failed}; trying again in 0\.001 s"),
        pytest.raises(RunError, match=rf"{failed}; check the network"),
    ):
        store.shards[0].token_windows(np.array([0]), 3)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(RunError, match=r"manifest\.json: download failed"):
        open_shards(URL)


def test_a_full_or_unwritable_cache_is_reported(remote, home, monkeypatch):
    shard = open_shards(URL).shards[0]
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match=r"home/shards: 0\.0 GB free.* set MLM_JAX_HOME"):
        shard.token_windows(np.array([0]), 3)
    shutil.rmtree(home)
    home.touch()
    with pytest.raises(RunError, match=r"cannot be stored: .* set MLM_JAX_HOME"):
        shard.token_windows(np.array([0]), 3)


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/data", "gcsfs"), ("s3://bucket/data", "s3fs")])
def test_a_missing_package_is_named(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"^{url}: needs {package}: pip install {package}$"):
        open_shards(url)
    with pytest.raises(InputError, match="no-such://bucket: cannot be opened"):
        open_shards("no-such://bucket")


def test_a_file_url_is_a_folder(local):
    assert open_folder(f"file://{local}") == LocalFolder(local) == open_folder(local)
    assert open_folder("memory://bucket/data/") == RemoteFolder("memory://bucket/data")
    assert (
        open_shards(f"file://{local}").shards[0].token_source
        == local / "part-00000-of-00002/tokens-00000.bin"
    )


def test_preparing_into_a_url_is_rejected(local, home):
    tokenizer = Tokenizer.load(local / "tokenizer")
    with pytest.raises(InputError, match=f"{URL}: expected a local folder"):
        prepare([str(local.parent / "*.txt")], tokenizer, URL)


def test_two_hosts_without_file_locks_download_one_file_into_one_cache(local, remote, home, monkeypatch):
    """The second host downloads between the first one's download and its check."""
    name = "part-00000-of-00002/tokens-00000.bin"
    content = remote.cat_file(f"/bucket/data/{name}")
    file = RemoteFile(f"{URL}/{name}", len(content), hashlib.sha256(content).hexdigest())
    get_file = MemoryFileSystem.get_file
    fetched = []

    def second_starts_within_the_first(self, name, target, **options):
        fetched.append(target)
        get_file(self, name, target, **options)
        if len(fetched) == 1:
            file.fetch()
            assert Path(target).read_bytes() == file.kept_path.read_bytes()

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(MemoryFileSystem, "get_file", second_starts_within_the_first)
    monkeypatch.setattr("fcntl.flock", unsupported)
    assert file.fetch().read_bytes() == content
    assert len(set(fetched)) == 2
    assert kept(home) == [file.sha256]


# A remote file system over a local folder that logs its downloads and is slow, so that all processes overlap.
FETCH_ALL = """
import sys, time
import fsspec
from concurrent.futures import ThreadPoolExecutor
from fsspec.implementations.local import LocalFileSystem

class Slow(LocalFileSystem):
    protocol = "slow"
    def get_file(self, name, target, **options):
        with open(sys.argv[2], "a") as log:
            print(name, file=log)
        time.sleep(0.02)
        super().get_file(name, target, **options)

fsspec.register_implementation("slow", Slow)
from mlm_jax.data.shards import open_shards
store = open_shards("slow://" + sys.argv[1])
with ThreadPoolExecutor(4) as pool:
    lengths = list(pool.map(lambda shard: len(shard.tokens), store.shards * 2))
assert sum(lengths) == 2 * store.num_tokens
"""


def test_processes_and_threads_download_each_file_once(local, home, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", FETCH_ALL, str(local), str(log)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    fetched = log.read_text().splitlines()
    assert len(fetched) == len(set(fetched)) == len(list(local.rglob("tokens-*.bin"))) == len(kept(home))


def test_leftovers_of_a_killed_process_are_replaced(local, remote, home):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    content = next(local.rglob("tokens-00000.bin")).read_bytes()
    name = f"{URL}/{next(local.rglob('tokens-00000.bin')).relative_to(local)}"
    file = RemoteFile(name, len(content), hashlib.sha256(content).hexdigest())
    file.kept_path.parent.mkdir(parents=True)
    writer = f"{socket.gethostname()}-{killed.pid}-0123abcd"
    file.kept_path.with_name(f"{file.sha256}.{writer}.partial").write_bytes(content[:50])
    file.kept_path.with_name(f"{file.sha256}.lock").touch()
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: file.fetch(), range(8)))
    assert paths == {file.kept_path}
    assert file.kept_path.read_bytes() == content
    assert kept(home) == [file.sha256]
