"""Preparation gives the same bytes after any interruption, and never looks complete when it is not."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard

from mlm_jax.commands import tokenizer as train_tokenizer
from mlm_jax.corpus.document_hashes import DocumentHashes
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError, RunError
from mlm_jax.preparation import prepare as prepare_module
from mlm_jax.preparation.division import Part
from mlm_jax.preparation.merge import merge_parts
from mlm_jax.preparation.prepare import Preparation, prepare
from mlm_jax.shards.token_store import open_shards
from mlm_jax.text.tokenizer import Tokenizer
from tests.locks import held_by_another_process
from tests.preparation import kills

ROOT = Path(__file__).parents[2]
WORDS = ["the", "tower", "stands", "in", "a", "city", "of", "rivers", "and", "bridges", "where", "walk"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "."]
NUM_DOCUMENTS = 400
# Small shards and blocks, so that a small corpus crosses every boundary.
SMALL = "import mlm_jax.text.encode as encode; encode._BLOCK_CHARACTERS = 200\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(WORDS, rng.integers(1, 30))) + "." for _ in range(NUM_DOCUMENTS)]
    documents[3] = "\u200b"
    documents[7] = "  "
    for part in range(2):
        lines = "".join(json.dumps({"text": document}) + "\n" for document in documents[part::2])
        (folder / f"part{part}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("mlm_jax.text.encode._BLOCK_CHARACTERS", 200)


def prepare_corpus(corpus: Path, output: Path, **settings) -> Preparation:
    settings = {"shard_tokens": 500, **settings}
    return prepare(
        [str(corpus / "part*.jsonl.zst")], Tokenizer.load(corpus / "vocab.txt"), output, **settings
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_prepare(corpus: Path, output: Path, before: str = "") -> subprocess.CompletedProcess:
    script = (
        f"{SMALL}{before}\n"
        "from mlm_jax.preparation.prepare import prepare\n"
        "from mlm_jax.text.tokenizer import Tokenizer\n"
        f"prepare([{str(corpus / 'part*.jsonl.zst')!r}], Tokenizer.load({str(corpus / 'vocab.txt')!r}),\n"
        f"        {str(output)!r}, shard_tokens=500)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "data"
    prepare_corpus(corpus, folder, workers=1)
    assert len(open_shards(folder).shards) > 5
    return files_of(folder)


def test_totals_and_manifest(corpus, tmp_path):
    preparation = prepare_corpus(corpus, tmp_path / "data")
    store = verify_shards(tmp_path / "data")
    totals = preparation.totals
    assert (totals.documents, totals.tokens) == (store.num_documents, store.num_tokens)
    assert (totals.documents, totals.skipped, totals.replaced) == (NUM_DOCUMENTS - 2, 2, 0)
    assert preparation.seconds > 0
    assert preparation.text_bytes == totals.characters + len("\u200b".encode())
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["totals"]["characters"] == totals.characters
    assert manifest["token_dtype"] == "uint16"
    assert set(files_of(tmp_path / "data")) == {
        "manifest.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.txt",
        *(
            f"{kind}-{i:05d}.bin"
            for kind in ("tokens", "documents", "checksums")
            for i in range(len(store.shards))
        ),
    }


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.usefixtures("small_blocks")
def test_output_does_not_depend_on_workers_and_blocks(corpus, uninterrupted, tmp_path, workers):
    prepare_corpus(corpus, tmp_path / "data", workers=workers)
    assert files_of(tmp_path / "data") == uninterrupted


# Imported before the calls are counted.
KILL_AT = f"import mlm_jax.files, mlm_jax.preparation.prepare\n{kills.KILL_AT}"


@pytest.fixture(scope="module")
def disk_operations(corpus, tmp_path_factory) -> int:
    count = KILL_AT.format(at=-1) + "\nimport atexit; atexit.register(lambda: print(calls))\n"
    return int(run_prepare(corpus, tmp_path_factory.mktemp("counted") / "data", count).stdout)


KILLS = [0, 1, 2, 4, 5, 7, *range(10, 19), 39, 60, -9, -6, -4, -3, -2, -1]


# The slow ones are of the same kinds as their neighbors.
@pytest.mark.parametrize(
    "at",
    [pytest.param(at, marks=() if index % 4 == 0 else pytest.mark.slow) for index, at in enumerate(KILLS)],
)
def test_resumes_after_a_kill_before_any_disk_operation(corpus, uninterrupted, disk_operations, tmp_path, at):
    output = tmp_path / "data"
    killed = run_prepare(corpus, output, KILL_AT.format(at=range(disk_operations)[at] + 1))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    if not (output / "manifest.json").exists():
        with pytest.raises(InputError, match=r"incomplete|no prepared data"):
            open_shards(output)
    for name, content in (files_of(output) if output.exists() else {}).items():
        passing = name.endswith(".partial") or name in ("progress.json", "lock")
        assert passing or content == uninterrupted[name]
    prepare_corpus(corpus, output)
    assert files_of(output) == uninterrupted


def test_resumes_after_kills_at_random_times(corpus, uninterrupted, tmp_path):
    output = tmp_path / "data"
    slow = "import os, time; fsync = os.fsync; os.fsync = lambda fd: (time.sleep(0.02), fsync(fd))\n"
    script = (
        f"{SMALL}{slow}"
        "from mlm_jax.preparation.prepare import prepare\n"
        "from mlm_jax.text.tokenizer import Tokenizer\n"
        f"prepare([{str(corpus / 'part*.jsonl.zst')!r}], Tokenizer.load({str(corpus / 'vocab.txt')!r}),\n"
        f"        {str(output)!r}, shard_tokens=500)\n"
    )
    resumed_from = []
    for shards in (1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        deadline = time.monotonic() + 30
        while not (output / f"tokens-{shards:05d}.bin").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(InputError, match="incomplete"):
            open_shards(output)
        resumed_from.append(len(json.loads((output / "progress.json").read_text())["shards"]))
    assert resumed_from == sorted(resumed_from)
    assert resumed_from[-1] >= 6
    prepare_corpus(corpus, output)
    assert files_of(output) == uninterrupted


def test_resuming_does_not_encode_finished_documents(corpus, tmp_path, monkeypatch):
    output = tmp_path / "data"
    killed = run_prepare(corpus, output, KILL_AT.format(at=61))
    assert killed.returncode == -signal.SIGKILL
    done = json.loads((output / "progress.json").read_text())["documents_read"]
    assert done > 100
    encoded = []
    encode_batch = Tokenizer.encode_batch
    monkeypatch.setattr(
        Tokenizer, "encode_batch", lambda self, texts: (encoded.extend(texts), encode_batch(self, texts))[1]
    )
    prepare_corpus(corpus, output)
    assert len(encoded) == NUM_DOCUMENTS - 1 - done


def test_a_complete_folder_is_not_touched(corpus, tmp_path):
    first = prepare_corpus(corpus, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    again = prepare_corpus(corpus, tmp_path / "data", workers=3)
    assert again.totals == first.totals
    assert again.seconds == 0
    assert "already complete" in again.summary()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"separator": "none"}, "separator was 'sep', is 'none'"),
        ({"shard_tokens": 501}, "shard_tokens was 500, is 501"),
        ({"errors": "replace"}, "errors was 'strict', is 'replace'"),
        ({"text_field": "title"}, "text_field was 'text', is 'title'"),
    ],
)
def test_other_settings_are_rejected_with_the_difference(corpus, tmp_path, complete, settings, named):
    output = tmp_path / "data"
    if complete:
        prepare_corpus(corpus, output)
    else:
        run_prepare(corpus, output, KILL_AT.format(at=40))
    before = files_of(output)
    assert ("manifest.json" in before) == complete
    with pytest.raises(InputError, match=named):
        prepare_corpus(corpus, output, **settings)
    kept = {name for name in before if not name.endswith(".partial") and name != "lock"}
    assert {name: before[name] for name in kept} == files_of(output)


def test_other_inputs_and_tokenizers_are_rejected(corpus, tmp_path):
    output = tmp_path / "data"
    prepare_corpus(corpus, output)
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    with pytest.raises(InputError, match=r"inputs was \{'name': 'part1.jsonl.zst', .*is 'nothing'"):
        prepare([corpus / "part0.jsonl.zst"], tokenizer, output, shard_tokens=500)
    cased = Tokenizer.load(corpus / "vocab.txt", lowercase=False)
    with pytest.raises(InputError, match="tokenizer_fingerprint was"):
        prepare([str(corpus / "part*.zst")], cased, output, shard_tokens=500)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("shard_tokens", [50, 100_000])
@pytest.mark.usefixtures("small_blocks")
def test_bad_input_leaves_nothing_behind(corpus, tmp_path, existing, shard_tokens):
    documents = ["the tower stands in a city"] * 200
    text = "\n".join(json.dumps({"text": document}) for document in documents).encode()
    whole = zstandard.ZstdCompressor().compress(text)
    bad = {
        "line.jsonl": (text + b'\n{"text": ', "line.jsonl:201: not valid JSON"),
        "field.jsonl": (text + b'\n{"txt": "a"}', "line 201|field.jsonl:201: no field 'text'"),
        "utf8.jsonl": (text + b'\n{"text": "\xff"}', f"invalid UTF-8 at byte {len(text) + 11}"),
        "cut.jsonl.zst": (whole[:-3], "truncated"),
        "blank.txt": (b" \n \n", "no readable document"),
        "invisible.txt": ("\u200b\n\u200b\n".encode(), "none of the 2 documents has a token"),
    }
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    output = tmp_path / "data"
    if existing:
        output.mkdir()
    for name, (content, expected) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=expected):
            prepare([str(tmp_path / name)], tokenizer, output, shard_tokens=shard_tokens, workers=2)
        assert output.exists() == existing
        assert not existing or not list(output.iterdir())


def test_replaced_text_is_counted(corpus, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"the tower\nthe \xff city\n\n")
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    preparation = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "data", errors="replace")
    assert (preparation.totals.replaced, preparation.totals.skipped) == (1, 1)
    assert "1 documents skipped, 1 with invalid text replaced" in preparation.summary()


def test_unknown_tokens_are_counted_and_reported(corpus, tmp_path):
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    (tmp_path / "a.txt").write_text("the tower of Pisa\nthe city\n" + "the city where rivers walk\n" * 4)
    preparation = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "few")
    assert (preparation.totals.unknown_tokens, preparation.totals.unknown_share) == (1, 1 / 26)
    assert "3.85% of the tokens unknown" in preparation.summary()
    assert preparation.warnings == (
        "3.8% of the tokens are unknown ([UNK]), such as 'Pisa'; a model learns nothing from them, so check that the "
        "tokenizer is meant for this text",
    )
    manifest = json.loads((tmp_path / "few" / "manifest.json").read_text())
    assert (manifest["totals"]["unknown_tokens"], manifest["totals"]["separators"]) == (1, 6)
    (tmp_path / "b.txt").write_text("the tower of Pisa\n" + "the city where rivers walk\n" * 40)
    preparation = prepare([str(tmp_path / "b.txt")], tokenizer, tmp_path / "fewer", separator="none")
    assert (preparation.totals.unknown_tokens, preparation.totals.separators) == (1, 0)
    assert "0.49% of the tokens unknown" in preparation.summary()
    assert not preparation.warnings
    (tmp_path / "dna.txt").write_text(("ACGT" * 75 + "\n") * 20)
    preparation = prepare([str(tmp_path / "dna.txt")], tokenizer, tmp_path / "all")
    assert preparation.totals.unknown_share == 1
    assert "'ACGTACGTACGTACGTACGTACGT… (300 characters)'; words of more than 100" in preparation.warnings[0]


def test_exact_duplicates_are_counted(corpus, tmp_path, monkeypatch):
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    lines = [f"the city {' '.join('a' * (n % 7))}\n" for n in range(21)]
    (tmp_path / "a.txt").write_text("".join(lines))
    preparation = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "data")
    assert preparation.duplicates == 14
    assert "14 exact duplicates" in preparation.summary()
    # Beyond the bound, the number is an estimate from a sample.
    monkeypatch.setattr("mlm_jax.corpus.document_hashes._MOST_HASHES", 4000)
    hashes = DocumentHashes()
    documents = [str(n % 20_000) for n in range(30_000)]
    assert list(hashes.kept(documents)) == documents
    assert hashes.duplicates == pytest.approx(10_000, rel=0.15)
    assert len(hashes._seen) <= 4000


@pytest.mark.usefixtures("small_blocks")
def test_documents_are_held_out_by_their_text(corpus, tmp_path):
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    rng = np.random.default_rng(1)
    documents = [" ".join(rng.choice(WORDS, 8)) for _ in range(2000)]
    documents += documents[:500]
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("\n".join(documents[number::4]))
    inputs, settings = [str(tmp_path / "*.txt")], {"shard_tokens": 5000, "eval_share": 0.1}
    preparation = prepare(inputs, tokenizer, tmp_path / "data", workers=1, **settings)
    sides = [set(texts_of(tmp_path / "data" / name, tokenizer)) for name in (".", "eval")]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(documents)
    assert preparation.totals.documents + preparation.evaluation.totals.documents == 2500
    assert preparation.evaluation.totals.documents == pytest.approx(250, abs=60)
    assert preparation.duplicates + preparation.evaluation.duplicates == 500
    # The same in every process, for any number of workers, after an interruption, and in parts.
    held_out = DocumentHashes(0.3, held_out=True).kept(map(str, range(20)))
    assert list(held_out) == ["2", "6", "17", "18"]
    prepare(inputs, tokenizer, tmp_path / "again", workers=3, **settings)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "data")
    shutil.rmtree(tmp_path / "again" / "eval")
    prepare(inputs, tokenizer, tmp_path / "again", **settings)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "data")
    for index in range(2):
        prepare(inputs, tokenizer, tmp_path / "parts", part=Part(index, 2), **settings)
    merge_parts(tmp_path / "parts")
    for name in (".", "eval"):
        fingerprints = [open_shards(tmp_path / folder / name).fingerprint for folder in ("data", "parts")]
        assert fingerprints[0] == fingerprints[1]
    again = prepare(inputs, tokenizer, tmp_path / "data", **settings)
    assert (again.seconds, again.evaluation.seconds) == (0, 0)
    with pytest.raises(InputError, match=r"eval_share was 0\.1, is None"):
        prepare(inputs, tokenizer, tmp_path / "data", shard_tokens=5000)


def test_a_share_that_holds_out_nothing_is_rejected(corpus, tmp_path):
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    (tmp_path / "a.txt").write_text("the city\n")
    for share in (0.001, 0.999):
        with pytest.raises(InputError, match="one side has none of the 1 documents"):
            prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / f"{share}", eval_share=share)
        assert not (tmp_path / f"{share}").exists()
    for share in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="expected a number between 0 and 1"):
            prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "data", eval_share=share)


def test_input_inside_the_output_folder_or_around_it_is_rejected(corpus, tmp_path):
    """Otherwise, the vocabulary of the output would be text when it is prepared again."""
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    texts, output = tmp_path / "texts", tmp_path / "texts" / "data"
    texts.mkdir()
    (texts / "a.txt").write_text("the city\n")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match=r"loop is a link to .*, which does not exist"):
        prepare([str(texts)], tokenizer, loop)
    for folder in (texts, f"file://{tmp_path}"):
        with pytest.raises(InputError, match=r"data: is inside the input folder .*; choose a folder outside"):
            prepare([str(folder)], tokenizer, output)
    with pytest.raises(InputError, match=r"data: is inside the input folder"):
        train_tokenizer.main(["--input", str(texts), "--vocab-size", "60", "--output", str(output)], "")
    assert not output.exists()
    prepare([str(texts / "**" / "*.txt")], tokenizer, output)
    with pytest.raises(InputError, match=r"vocab\.txt: is inside the output folder"):
        prepare([str(texts / "**" / "*.txt")], tokenizer, output)
    prepare([str(texts / "*.txt")], tokenizer, output)


def test_standard_input_is_read_once(corpus, tmp_path, monkeypatch):
    class Input:
        buffer = io.BytesIO(b"the city\nthe tower\n")

    monkeypatch.setattr(sys, "stdin", Input)
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    with pytest.raises(InputError, match="standard input cannot be divided into parts"):
        prepare(["-"], tokenizer, tmp_path / "data", format="txt", part=Part(0, 2))
    with pytest.raises(InputError, match="standard input can be read only once"):
        prepare(["-"], tokenizer, tmp_path / "data", format="txt", eval_share=0.5)
    assert prepare(["-"], tokenizer, tmp_path / "data", format="txt").totals.documents == 2
    with pytest.raises(InputError, match="cannot be compared with standard input"):
        prepare(["-"], tokenizer, tmp_path / "data", format="txt")


def test_files_without_a_document_are_skipped_and_counted(corpus, tmp_path):
    tokenizer = Tokenizer.load(corpus / "vocab.txt")
    (tmp_path / "text").mkdir()
    for name, text in (("a", "the city\n"), ("b", ""), ("c", "\n")):
        (tmp_path / "text" / f"{name}.txt").write_text(text)
    preparation = prepare([str(tmp_path / "text")], tokenizer, tmp_path / "data")
    assert preparation.totals.empty_files == 2
    assert "1 documents skipped, 2 files without a document" in preparation.summary()
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["totals"]["empty_files"] == 2


def texts_of(folder: Path, tokenizer: Tokenizer) -> list[str]:
    texts = []
    for shard in open_shards(folder).shards:
        offsets = shard.document_offsets
        for start, end in pairwise(offsets):
            texts.append(tokenizer.decode(shard.tokens[int(start) : int(end) - 1]))
    return texts


def test_a_folder_with_other_files_is_rejected_and_not_touched(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    (tmp_path / "film.partial").write_text("half of it")
    with pytest.raises(InputError, match="not empty"):
        prepare_corpus(corpus, tmp_path)
    assert files_of(tmp_path) == {"thesis.tex": b"precious", "film.partial": b"half of it"}


def test_a_folder_that_another_process_prepares_is_refused_and_not_touched(corpus, uninterrupted, tmp_path):
    with held_by_another_process(tmp_path / "data") as child:
        with pytest.raises(
            InputError, match=f"data: in use by process {child.pid} on .*; wait until it ends"
        ):
            prepare_corpus(corpus, tmp_path / "data")
        assert set(files_of(tmp_path / "data")) == {"lock"}
    prepare_corpus(corpus, tmp_path / "data")
    assert files_of(tmp_path / "data") == uninterrupted


@pytest.mark.usefixtures("small_blocks")
def test_a_folder_that_is_removed_meanwhile_is_not_called_bad_input(corpus, tmp_path, monkeypatch):
    save = prepare_module._save_progress

    def remove_the_folder(folder: Path, progress: object) -> None:
        save(folder, progress)
        if len(progress.shards) == 2:
            shutil.rmtree(folder)

    monkeypatch.setattr(prepare_module, "_save_progress", remove_the_folder)
    with pytest.raises(RunError, match="data: the folder was removed, moved or replaced"):
        prepare_corpus(corpus, tmp_path / "data")


@pytest.mark.usefixtures("small_blocks")
def test_full_disk_keeps_finished_shards(corpus, uninterrupted, tmp_path):
    # With a limit on file sizes, writes fail as on a full disk.
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import mlm_jax.preparation.prepare as p\n"
        "save = p._save_progress\n"
        "def limiting(folder, progress):\n"
        "    save(folder, progress)\n"
        "    if len(progress.shards) == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "p._save_progress = limiting\n"
    )
    run = run_prepare(corpus, tmp_path / "data", limit)
    assert "RunError" in run.stderr
    assert "File too large; rerun it to resume" in run.stderr
    assert not list((tmp_path / "data").glob("*.partial"))
    assert len(json.loads((tmp_path / "data" / "progress.json").read_text())["shards"]) == 3
    prepare_corpus(corpus, tmp_path / "data")
    assert files_of(tmp_path / "data") == uninterrupted


def test_full_disk_before_the_first_shard_leaves_nothing_behind(corpus, tmp_path):
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import mlm_jax.preparation.prepare as p\n"
        "save = p._save_progress\n"
        "def limiting(folder, progress):\n"
        "    save(folder, progress)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "p._save_progress = limiting\n"
    )
    run = run_prepare(corpus, tmp_path / "data", limit)
    assert "preparation stopped" in run.stderr
    assert not (tmp_path / "data").exists()


def test_a_damaged_unfinished_preparation_is_rejected(corpus, tmp_path):
    output = tmp_path / "data"
    run_prepare(corpus, output, KILL_AT.format(at=40))
    (output / "tokens-00000.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"tokens-00000\.bin: 0 bytes, expected"):
        prepare_corpus(corpus, output)
    (output / "progress.json").write_text("{")
    with pytest.raises(InputError, match=r"progress\.json: damaged"):
        prepare_corpus(corpus, output)


@pytest.mark.parametrize("setting", ["workers", "shard_tokens"])
def test_settings_below_one_are_rejected(corpus, tmp_path, setting):
    with pytest.raises(InputError, match=f"{setting} 0: expected at least 1"):
        prepare_corpus(corpus, tmp_path / "data", **{setting: 0})


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(corpus, tmp_path):
    # One document of 20 MB and half a million short ones.
    with zstandard.ZstdCompressor().stream_writer((tmp_path / "a.txt.zst").open("wb")) as writer:
        writer.write(b"the tower stands in a city of rivers and bridges. " * 400_000 + b"\n")
        writer.write(b"the city\n" * 500_000)
    script = (
        "import re\n"
        "from mlm_jax.preparation.prepare import prepare\n"
        "from mlm_jax.text.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer.load({str(corpus / 'vocab.txt')!r})\n"
        f"paths, output = [{str(tmp_path / 'a.txt.zst')!r}], {str(tmp_path / 'data')!r}\n"
        "done = prepare(paths, tokenizer, output, workers=2)\n"
        "assert done.totals.documents == 500_001\n"
        "assert done.totals.tokens == 11 * 400_000 + 1 + 3 * 500_000\n"
        # Not ru_maxrss, which a child process inherits from its parent.
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 600
