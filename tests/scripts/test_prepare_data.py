"""The commands that turn text into shards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlm_jax.data.verification import verify_shards
from mlm_jax.text.tokenizer import Tokenizer
from tests.run_small import run_script as run
from tests.run_small import run_script_alone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path) -> Path:
    for name in ("a", "b"):
        lines = [json.dumps({"body": f"The tower {name}{i} stands in the city."}) for i in range(50)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.jsonl").write_text('{"body": "Zürich stands."}')
    return tmp_path


def test_text_to_shards(corpus):
    inputs = ("--input", corpus / "c.jsonl", corpus / "[ab].jsonl", "--text-field", "body")
    trained = run(
        "train_tokenizer", *inputs, "--vocab-size", 100, "--output", corpus / "tokenizer", "--no-lowercase"
    )
    assert trained.returncode == 0, trained.stderr
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    assert f"{tokenizer.vocabulary_size} entries" in trained.stdout
    names = {path.name for path in (corpus / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}

    command = ("prepare_data", *inputs, "--tokenizer", corpus / "tokenizer", "--output", corpus / "data")
    prepared = run_script_alone(*command, "--workers", 2)
    assert prepared.returncode == 0, prepared.stderr
    assert "101 documents" in prepared.stdout
    assert "MB/s" in prepared.stdout
    store = verify_shards(corpus / "data")
    assert store.num_documents == 101
    first = store.shards[0].tokens[: int(store.shards[0].document_offsets[1]) - 1]
    assert tokenizer.decode(first) == "Zürich stands."

    again = run(*command)
    assert again.returncode == 0
    assert "already complete" in again.stdout
    other = run(*command, "--separator", "none")
    assert other.returncode == 2
    assert "separator was 'sep', is 'none'" in other.stderr


def test_parts_and_their_merge(corpus):
    vocabulary = corpus / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    inputs = ("--input", corpus / "*.jsonl", "--text-field", "body", "--tokenizer", vocabulary)
    command = ("prepare_data", *inputs, "--shard-tokens", 50, "--output", corpus / "data")
    second = run(*command, "--part", 1, "--num-parts", 2)
    assert second.returncode == 0, second.stderr
    assert second.stdout.startswith(f"{corpus}/data/part-00001-of-00002: ")
    refused = run("merge_data", corpus / "data")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {corpus}/data: parts 0 of 2 are missing; run mlm-jax prepare for them\n"
    )
    assert run(*command, "--part", 0, "--num-parts", 2).returncode == 0
    merged = run("merge_data", corpus / "data")
    assert merged.returncode == 0, merged.stderr
    assert merged.stdout.startswith(f"{corpus}/data: 101 documents, ")
    assert run(*command[:-1], corpus / "whole").returncode == 0
    fingerprints = {verify_shards(corpus / name).fingerprint for name in ("data", "whole")}
    assert len(fingerprints) == 1
    for flags in (("--part", 0), ("--num-parts", 2)):
        refused = run(*command, *flags)
        assert (refused.returncode, refused.stderr) == (
            2,
            "error: --part and --num-parts: must be given together, or neither of them\n",
        )


@pytest.mark.parametrize("script", ["train_tokenizer", "prepare_data"])
def test_bad_input_is_one_line_and_a_code(corpus, script):
    vocabulary = corpus / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    tokenizer = ("--tokenizer", vocabulary) if script == "prepare_data" else ()
    failed = run(script, "--input", corpus / "a.jsonl", *tokenizer, "--output", corpus / "out")
    assert failed.returncode == 2
    assert failed.stderr == f"error: {corpus / 'a.jsonl'}:1: no field 'text'; it has 'body'\n"
    assert failed.stdout == ""
    assert not (corpus / "out").exists()


def test_another_tokenizer_in_the_folder_is_not_replaced(corpus):
    command = (
        "train_tokenizer",
        "--input",
        corpus / "c.jsonl",
        "--text-field",
        "body",
        "--output",
        corpus / "out",
    )
    assert [run(*command, "--vocab-size", 60).returncode for _ in range(2)] == [0, 0]
    before = (corpus / "out" / "tokenizer.json").read_bytes()
    refused = run(*command, "--vocab-size", 34)
    assert refused.returncode == 2
    assert f"error: {corpus / 'out'}: has another tokenizer, " in refused.stderr
    assert (corpus / "out" / "tokenizer.json").read_bytes() == before


def test_an_output_that_cannot_be_written_is_one_line(corpus):
    output = corpus / "c.jsonl"
    failed = run("train_tokenizer", "--input", corpus / "a.jsonl", "--text-field", "body", "--output", output)
    assert failed.returncode == 2
    assert failed.stderr == f"error: {output}: is a file; must be a folder\n"


@pytest.mark.parametrize("script", ["train_tokenizer", "prepare_data"])
def test_help_and_misspelt_flags(script):
    shown = run(script, "--help")
    assert shown.returncode == 0
    assert "--input" in shown.stdout
    misspelt = run(script, "--input", "a.txt", "--otput", "b")
    assert misspelt.returncode != 0
    assert "--output" in misspelt.stderr + misspelt.stdout


def test_preparing_never_imports_jax(corpus):
    script = (
        "import sys, mlm_jax.preparation.merge, mlm_jax.shards.token_store\n"
        "from mlm_jax.commands import prepare, tokenizer\n"
        "assert not {'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)\n"
        "assert 'pyarrow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_formats_and_held_out_documents(corpus):
    (corpus / "more").mkdir()
    rows = "".join(f"{number}\tThe café {number} ist schön.\n" for number in range(40))
    (corpus / "more" / "part-0").write_text("id\tbody\n" + rows)
    inputs = ("--input", corpus / "more", "--format", "tsv", "--text-field", "body")
    limit = ("--max-input-chars-per-word", 20, "--strip-accents")
    trained = run("train_tokenizer", *inputs, *limit, "--vocab-size", 100, "--output", corpus / "tokenizer")
    assert trained.returncode == 0, trained.stderr
    assert "warning: strip_accents: changes or removes" in trained.stderr
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    assert tokenizer.word_length_limit == 20
    assert tokenizer.decode(tokenizer.encode("Schön")) == "schon"
    command = ("prepare_data", *inputs, "--tokenizer", corpus / "tokenizer", "--output", corpus / "data")
    prepared = run(*command, "--eval-share", 0.5)
    assert prepared.returncode == 0, prepared.stderr
    first, second = prepared.stdout.splitlines()
    assert first.startswith(f"{corpus}/data: ")
    assert second.startswith(f"{corpus}/data/eval: ")
    stores = [verify_shards(corpus / name) for name in ("data", "data/eval")]
    assert sum(store.num_documents for store in stores) == 40
    assert min(store.num_documents for store in stores) > 5
