"""Any number of merged parts equals one preparation, even after interruptions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.commands import merge
from mlm_jax.config import DataConfig
from mlm_jax.data.batches import Rows
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError
from mlm_jax.preparation.division import Part
from mlm_jax.preparation.merge import merge_parts
from mlm_jax.preparation.prepare import Preparation, prepare
from mlm_jax.shards.token_store import open_shards
from mlm_jax.text.tokenizer import Tokenizer
from tests.preparation.kills import KILL_AT

ROOT = Path(__file__).parents[2]
WORDS = ["the", "tower", "stands", "in", "a", "city", "of", "rivers", "and", "bridges", "where", "walk"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "."]
# Documents per file: uneven, two files without tokens; the first seven are small enough to share streams.
DOCUMENTS = [3, 1, 0, 2, 5, 1, 4, 300, 30, 80, 0, 10, 120, 2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    rng = np.random.default_rng(0)
    for number, count in enumerate(DOCUMENTS):
        lines = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(count)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines or ["  ", "\u200b"]))
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus) -> Tokenizer:
    return Tokenizer.load(corpus / "vocab.txt")


def prepare_corpus(corpus: Path, output: Path, part: Part | None = None, **settings) -> Preparation:
    settings = {"shard_tokens": 500, "workers": 1, **settings}
    return prepare(
        [str(corpus / "[01]*.txt")], Tokenizer.load(corpus / "vocab.txt"), output, part=part, **settings
    )


def prepare_parts(corpus: Path, output: Path, num_parts: int, **settings) -> None:
    for index in np.random.default_rng(num_parts).permutation(num_parts).tolist():
        prepare_corpus(corpus, output, Part(index, num_parts), **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "data"
    prepare_corpus(corpus, folder)
    assert len(open_shards(folder).shards) > 8
    return folder


@pytest.fixture(scope="module")
def three_parts(corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "data"
    prepare_parts(corpus, folder, 3)
    return folder


@pytest.fixture
def parts(three_parts, tmp_path) -> Path:
    return shutil.copytree(three_parts, tmp_path / "data")


@pytest.mark.parametrize("num_parts", [1, 2, 3, 20])
def test_any_number_of_parts_gives_the_same_data(corpus, whole, tokenizer, tmp_path, num_parts):
    output = tmp_path / "data"
    prepare_parts(corpus, output, num_parts)
    before = stamps(output)
    totals = merge_parts(output)
    after = stamps(output)
    assert {path: after[path] for path in before if path != output} == {
        path: before[path] for path in before if path != output
    }

    expected, merged = open_shards(whole), verify_shards(output)
    assert merged.fingerprint == expected.fingerprint
    for ours, theirs in zip(merged.shards, expected.shards, strict=True):
        assert ours.tokens.tobytes() == theirs.tokens.tobytes()
        assert ours.document_offsets.tobytes() == theirs.document_offsets.tobytes()
    rows, expected_rows = (Rows(s, tokenizer, DataConfig(sequence_length=20)) for s in (merged, expected))
    every = np.arange(expected_rows.num_rows)
    np.testing.assert_array_equal(rows.read(every), expected_rows.read(every))

    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (output, whole)]
    for manifest in manifests:
        for shard in manifest["shards"]:
            del shard["folder"]
    assert manifests[0] == manifests[1]
    assert Tokenizer.load(output / "tokenizer").fingerprint == tokenizer.fingerprint
    assert totals == prepare_corpus(corpus, whole).totals
    # Without `part`, the merged folder counts as a complete preparation.
    assert "already complete" in prepare_corpus(corpus, output).summary()
    assert "already complete" in prepare_corpus(corpus, output, Part(0, num_parts)).summary()


def test_every_part_has_work(corpus, whole, parts):
    tokens = [open_shards(parts / Part(index, 3).folder).num_tokens for index in range(3)]
    assert sum(tokens) == open_shards(whole).num_tokens
    assert min(tokens) > 0


def test_merging_again_changes_nothing(parts):
    first = merge_parts(parts)
    before = stamps(parts)
    assert merge_parts(parts) == first
    assert stamps(parts) == before
    (parts / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"manifest\.json: exists and does not belong to these parts"):
        merge_parts(parts)


def test_missing_parts_are_named(corpus, tmp_path):
    prepare_parts(corpus, tmp_path, 12)
    for index in (1, 5, 6, 7, 11):
        shutil.rmtree(tmp_path / Part(index, 12).folder)
    (tmp_path / Part(3, 12).folder / "manifest.json").rename(tmp_path / Part(3, 12).folder / "progress.json")
    with pytest.raises(InputError, match=r"parts 1,3,5-7,11 of 12 are missing \(3 not finished\)"):
        merge_parts(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    with pytest.raises(InputError, match=r"no prepared data here .* mlm-jax merge"):
        open_shards(tmp_path)
    with pytest.raises(InputError, match="no parts here"):
        merge_parts(tmp_path / Part(0, 12).folder)


def test_parts_with_different_settings_are_rejected(corpus, parts, tmp_path):
    odd = Part(1, 3)
    lowercase = Tokenizer.load(corpus / "vocab.txt", lowercase=False)
    more = shutil.copytree(corpus, tmp_path / "more")
    (more / "14.txt").write_text("the tower")
    for name, remake in {
        "separator": lambda: prepare_corpus(corpus, parts, odd, separator="none"),
        "shard_tokens": lambda: prepare_corpus(corpus, parts, odd, shard_tokens=501),
        "tokenizer_fingerprint": lambda: prepare(
            [str(corpus / "[01]*.txt")], lowercase, parts, part=odd, shard_tokens=500
        ),
        "corpus": lambda: prepare_corpus(more, parts, odd),
    }.items():
        shutil.rmtree(parts / odd.folder)
        remake()
        with pytest.raises(InputError, match=f"{odd.folder}: {name} is .*, but .* in the first part"):
            merge_parts(parts)
        assert not (parts / "manifest.json").exists()


def test_parts_that_do_not_cover_the_corpus_are_rejected(parts):
    """For example parts made by two releases that divide differently."""
    file = parts / Part(1, 3).folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["settings"]["inputs"].pop()
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="the parts do not cover the 14 input files"):
        merge_parts(parts)


def test_a_damaged_part_is_rejected(parts):
    file = parts / Part(1, 3).folder / "tokens-00000.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match=rf"{Part(1, 3).folder}/tokens-00000\.bin: \d+ bytes, expected"):
        merge_parts(parts)


def test_folders_that_hold_other_data_are_rejected(corpus, whole, parts):
    with pytest.raises(InputError, match=r"contains part-0000.-of-00003, not one of 4 parts"):
        prepare_corpus(corpus, parts, Part(0, 4))
    with pytest.raises(InputError, match="contains a preparation without parts"):
        prepare_corpus(corpus, whole, Part(0, 4))
    with pytest.raises(InputError, match="not empty"):
        prepare_corpus(corpus, parts)
    shutil.copytree(parts / Part(0, 3).folder, parts / Part(0, 4).folder)
    with pytest.raises(InputError, match="contains parts of 00003 and of 00004"):
        merge_parts(parts)


def test_merging_parts_without_tokens_is_rejected(corpus, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\u200b")
    for index in range(2):
        prepare(
            [str(tmp_path / "*.txt")],
            Tokenizer.load(corpus / "vocab.txt"),
            tmp_path / "data",
            part=Part(index, 2),
        )
    with pytest.raises(InputError, match="none of the 2 documents has a token"):
        merge_parts(tmp_path / "data")


@pytest.mark.parametrize("at", range(1, 9))
def test_an_interrupted_merge_does_not_look_finished(parts, monkeypatch, at):
    expected = files_of(parts)
    calls = 0

    def stopping(call):
        def wrapped(*arguments):
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return call(*arguments)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", stopping(os.fsync))
        patched.setattr(os, "replace", stopping(os.replace))
        with pytest.raises(KeyboardInterrupt):
            merge_parts(parts)
    assert not (parts / "manifest.json").exists()
    merge_parts(parts)
    verify_shards(parts)
    assert {name: files_of(parts)[name] for name in expected} == expected


def part_job(corpus: Path, output: Path, before: str, **options) -> subprocess.Popen:
    script = (
        f"{before}\n"
        "from mlm_jax.preparation.division import Part\n"
        "from mlm_jax.preparation.prepare import prepare\n"
        "from mlm_jax.text.tokenizer import Tokenizer\n"
        f"prepare([{str(corpus / '[01]*.txt')!r}], Tokenizer.load({str(corpus / 'vocab.txt')!r}),\n"
        f"        {str(output)!r}, shard_tokens=500, workers=1, part=Part(0, 3))\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **options)


@pytest.mark.parametrize("at", [2, 7, 14, 20, 70])
def test_a_killed_part_resumes(corpus, parts, at):
    part = Part(0, 3)
    expected = files_of(parts)
    shutil.rmtree(parts / part.folder)
    assert part_job(corpus, parts, KILL_AT.format(at=at)).wait() == -signal.SIGKILL
    with pytest.raises(InputError, match="parts 0 of 3 are missing"):
        merge_parts(parts)
    prepare_corpus(corpus, parts, part)
    assert files_of(parts) == expected


SLOW = "import os, time; fsync = os.fsync; os.fsync = lambda fd: (time.sleep(0.03), fsync(fd))\n"
WITHOUT_LOCKS = """
import errno
from mlm_jax.files import folder_lock
def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
folder_lock.fcntl.flock = refuse
"""


@pytest.mark.parametrize(
    ("shard", "locks"), [(0, True), *(pytest.param(s, False, marks=pytest.mark.slow) for s in (0, 1))]
)
def test_a_second_job_of_one_part_does_no_harm(corpus, parts, shard, locks):
    """A scheduler may restart a job before its first process is dead.

    The second job is refused. Without locks, it takes over, and the first fails when it continues.
    """
    expected = files_of(parts)
    shutil.rmtree(parts / Part(0, 3).folder)
    before = "" if locks else WITHOUT_LOCKS
    first = part_job(corpus, parts, before + SLOW, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not list(parts.glob(f"part-00000-*/tokens-{shard:05d}.bin.*.partial")):
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    second = part_job(corpus, parts, before, stderr=subprocess.PIPE, text=True)
    said = second.communicate()[1]
    first.send_signal(signal.SIGCONT)
    first_said = first.communicate()[1]
    if locks:
        assert f"in use by process {first.pid} on " in said
        assert first.returncode == 0, first_said
    else:
        assert second.returncode == 0, said
        assert "the folder was removed, moved or replaced" in first_said
    assert files_of(parts) == expected


def test_held_out_parts_are_merged_and_reported(corpus, tmp_path, capsys):
    prepare_parts(corpus, tmp_path / "data", 2, eval_share=0.3)
    away = tmp_path / "away"
    (tmp_path / "data" / "eval").rename(away)
    with pytest.raises(InputError, match="eval: no parts here"):
        merge_parts(tmp_path / "data")
    assert not (tmp_path / "data" / "manifest.json").exists()
    away.rename(tmp_path / "data" / "eval")
    merge.main([str(tmp_path / "data")], "mlm-jax merge")
    counts = [open_shards(tmp_path / "data" / side).num_documents for side in (".", "eval")]
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" documents")[0] for line in lines] == [
        f"{tmp_path}/data: {counts[0]}",
        f"{tmp_path}/data/eval: {counts[1]}",
    ]
