"""`mlm-jax extend`: from a model and words, text or a tokenizer to a model that training continues."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_jax.__main__ import run_command
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import flatten_params, write_model_folder
from mlm_jax.run.init_from import params_to_start_from
from mlm_jax.store.loading import load_model
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.masked_lm import MaskedLM
from tests.extension.test_rows import model_of
from tests.extension.tokenizers_small import byte_level, unigram
from tests.formats.folders import hugging_face_folder
from tests.tiny import encoder_folder, tiny_tokenizer

TEXT = "a sweet applesauce, the applesauce of a dullness\nmore dullness and applesauce\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return encoder_folder(tmp_path / "model")


def extended(model: Path, *flags: str) -> MaskedLM:
    output = model.parent / "output"
    run_command(["extend", str(model), "--output", str(output), *flags])
    return MaskedLM.from_preset(output)


def test_listed_words_can_be_predicted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "words.txt").write_text("Applesauce\nsweet\n\ndullness\n")
    lm = extended(model, "--tokens", f"{model.parent}/words.txt")
    before = tiny_tokenizer().vocabulary_size
    assert lm.tokenizer.encode("applesauce dullness").tolist() == [before, before + 1]
    (answer,) = lm.fill_mask("a sweet [MASK]", targets=["applesauce"])
    assert answer["token_str"] == "applesauce"
    out, err = capsys.readouterr()
    assert err == "left out 1 that are entries already, such as 'sweet'\n"
    assert out == (
        f"{model.parent}/output: {before + 2:,} rows, {before:,} of them kept and 2 made of those of their pieces\n"
    )


def test_training_continues_in_a_padded_table(model: Path) -> None:
    (model.parent / "words.txt").write_text("applesauce\n")
    lm = extended(model, "--tokens", f"{model.parent}/words.txt", "--vocabulary-multiple", "64")
    output = str(model.parent / "output")
    rows = lm.tokenizer.vocabulary_size
    assert (lm.config.vocabulary_size, lm.config.vocabulary_multiple) == (rows, 64)
    params = params_to_start_from(output, lm.config, lm.tokenizer, 0)
    table = params["encoder"]["embeddings"]["token"]
    assert (len(table) % 64, len(params["head"]["bias"])) == (0, len(table))
    stored = load_model(output)
    np.testing.assert_array_equal(table[:rows], stored.params["encoder"]["embeddings"]["token"])
    with pytest.raises(InputError, match=r"has the tokenizer .*: must be that of the data"):
        params_to_start_from(output, lm.config, tiny_tokenizer(), 0)
    assert load_model(model).config == replace(
        lm.config, vocabulary_size=tiny_tokenizer().vocabulary_size, vocabulary_multiple=1
    )


def test_costly_words_of_a_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "text.txt").write_text(TEXT)
    flags = ["--from-corpus", f"{model.parent}/text.txt", "--num-tokens", "9", "--min-count", "2"]
    lm = extended(model, *flags)
    assert lm.tokenizer.encode("applesauce dullness").tolist() == [*range(lm.tokenizer.vocabulary_size)][-2:]
    out, err = capsys.readouterr()
    assert err == "only 2 words are divided and occur at least 2 times, of 9 wanted\n"
    old, new = (sum(map(len, t.encode_batch(TEXT.splitlines()))) for t in (tiny_tokenizer(), lm.tokenizer))
    words = len(TEXT.split())
    assert f"\n{old / words:.3f} tokens per word before, {new / words:.3f} after ({words} words" in out


def folder_with(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    write_model_folder(folder, model_of(tokenizer))
    return folder


def test_costly_words_of_a_unigram_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the glioma (glioma) glioblastoma, glioblastoma.\nglioblastoma glioma-like"
    (tmp_path / "text.txt").write_text(text)
    model = folder_with(unigram("[unused0]▁"), tmp_path / "model")
    lm = extended(model, "--from-corpus", f"{tmp_path}/text.txt", "--num-tokens", "9", "--min-count", "2")
    size = unigram("[unused0]▁").vocabulary_size
    assert lm.tokenizer.encode("glioblastoma glioma").tolist() == [5, size]
    out, err = capsys.readouterr()
    assert err == "only 2 words are divided and occur at least 2 times, of 9 wanted\n"
    assert "2 made of those of their pieces, 1 in place of unused entries" in out
    assert not [*tmp_path.glob("output/**/*.model")]


@pytest.mark.parametrize("kind", ["characters", "k-mers"])
def test_entries_of_a_fixed_length_take_no_words(kind: Any, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["ACGTTGCA ACG"], 60, kind=kind, **{"k": 3} if kind == "k-mers" else {})
    folder_with(tokenizer, tmp_path / "model")
    (tmp_path / "words.txt").write_text("ACGT\n")
    flags = ["--tokens", f"{tmp_path}/words.txt", "--output", f"{tmp_path}/output"]
    with pytest.raises(
        InputError, match="is WordLevel, of whole words, characters or k-mers: must be WordPiece"
    ):
        run_command(["extend", f"{tmp_path}/model", *flags])
    assert not (tmp_path / "output").exists()


def test_the_counts_of_a_text_decide_the_biases_of_listed_words(model: Path) -> None:
    (model.parent / "text.txt").write_text(TEXT)
    (model.parent / "words.txt").write_text("applesauce\ndullness\nlovelily\n")
    flags = ["--tokens", f"{model.parent}/words.txt", "--from-corpus", f"{model.parent}/text.txt"]
    lm = extended(model, *flags)
    old = tiny_tokenizer()
    total = np.bincount(np.concatenate(old.encode_batch(TEXT.splitlines())), minlength=old.vocabulary_size)
    for word, count in {"applesauce": 3, "dullness": 2, "lovelily": 0}.items():
        # The biases of a random model are zeros.
        expected = np.log(count + 1) - np.log(total[old.encode(word)] + 1).mean()
        bias = flatten_params(lm.params)["head/bias"][lm.tokenizer.token_to_id(word)]
        assert bias == pytest.approx(expected, abs=1e-6)


def test_another_tokenizer(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    byte_level().save(model.parent / "other")
    lm = extended(model, "--tokenizer", f"{model.parent}/other")
    assert lm.tokenizer.fingerprint == byte_level().fingerprint
    assert lm.config.vocabulary_size == byte_level().vocabulary_size
    before, after = (flatten_params(m.params) for m in (MaskedLM.from_preset(model), lm))
    path = "encoder/embeddings/token"
    for entry, theirs in {"Ġthe": "the", "<mask>": "[MASK]", "s": "##s"}.items():
        row = before[path][tiny_tokenizer().token_to_id(theirs)]
        np.testing.assert_array_equal(after[path][lm.tokenizer.token_to_id(entry)], row)
    assert "without a known piece, which are the mean of all" in capsys.readouterr().out
    run = ["extend", f"{model.parent}/output", "--tokenizer", f"{model.parent}/other"]
    with pytest.raises(InputError, match="other: is the tokenizer that the model has; must be another"):
        run_command([*run, "--output", f"{model.parent}/again"])
    assert not (model.parent / "again").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of --tokens, --from-corpus, --tokenizer is required"),
        (["--tokens", "a", "--tokenizer", "b"], "--tokens and --tokenizer: must be one of them"),
        (["--tokens", "a", "--num-tokens", "5"], "--num-tokens: must be left out with --tokens"),
        (["--tokenizer", "a", "--min-count", "5"], "--min-count: must be left out with --tokenizer"),
        (["--from-corpus", "a", "--num-tokens", "0"], "--num-tokens 0: must be at least 1"),
        (["--from-corpus", "a", "--sample-characters", "0"], "--sample-characters 0: must be at least 1"),
        (["--tokens", "a", "--vocabulary-multiple", "-1"], "--vocabulary-multiple -1: must be at least 1"),
        (["--tokens", "nowhere.txt"], r"nowhere\.txt: no such file; expected a text file"),
        (["--from-corpus", "nowhere.txt"], r"nowhere\.txt: no such file"),
        (["--tokenizer", "nowhere"], "nowhere: no such file; expected tokenizer.json"),
        (["--tokens", "few.txt"], r"few\.txt: has no new word: left out 1 that are entries already"),
        (["--from-corpus", "few.txt"], r"few\.txt: has no word that is frequent enough"),
    ],
)
def test_refusals_leave_nothing_behind(
    model: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(model.parent)
    Path("few.txt").write_text("sweet\n")
    with pytest.raises(InputError, match=message):
        run_command(["extend", "model", "--output", "output", *flags])
    assert sorted(path.name for path in Path().iterdir()) == ["few.txt", "model"]


def test_an_existing_folder_is_refused_before_any_work(model: Path) -> None:
    with pytest.raises(InputError, match="model: already exists"):
        run_command(["extend", "nowhere", "--tokens", "nowhere.txt", "--output", str(model)])


def test_an_output_inside_the_text_is_refused(model: Path) -> None:
    (model.parent / "text.txt").write_text(TEXT)
    with pytest.raises(InputError, match="is inside the input"):
        run_command(
            ["extend", str(model), "--from-corpus", str(model.parent), "--output", f"{model.parent}/output"]
        )


@pytest.mark.parametrize(
    "architecture", ["BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification"]
)
def test_all_parts_of_a_model_are_kept(architecture: str, tmp_path: Path) -> None:
    source = hugging_face_folder(tmp_path / "source", architecture)
    (tmp_path / "words.txt").write_text("w1w\n")
    flags = ["--tokens", f"{tmp_path}/words.txt", "--output", f"{tmp_path}/output"]
    run_command(["extend", str(source), *flags])
    before, after = load_model(source), load_model(tmp_path / "output")
    assert (after.labels, after.problem_type) == (before.labels, before.problem_type)
    assert after.config == replace(before.config, vocabulary_size=before.config.vocabulary_size + 1)
    old, new = flatten_params(before.params), flatten_params(after.params)
    assert old.keys() == new.keys()
    for path, leaf in old.items():
        assert new[path].dtype == leaf.dtype
        np.testing.assert_array_equal(new[path][: len(leaf)], leaf)


def test_text_may_come_from_standard_input(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    lm = extended(model, "--from-corpus", "-", "--format", "txt", "--min-count", "2")
    assert lm.tokenizer.encode("applesauce").size == 1
