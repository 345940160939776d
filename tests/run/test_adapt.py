"""`mlm-jax train --from MODEL`: a model is continued without a config."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlm_jax.config import DataConfig, TrainConfig
from mlm_jax.config.files import load_config
from mlm_jax.errors import InputError
from mlm_jax.run.adapt import adapting_config, completed, prepare_texts
from mlm_jax.run.init_from import params_to_start_from
from mlm_jax.store.hub import find_tokenizer
from mlm_jax.text.tokenizer import Tokenizer
from tests.run_small import (
    MODEL,
    config_of,
    documents,
    prepared,
    run_script,
    tokenizer,
    uninterrupted,
    write_config,
)


def test_shape_and_conventions_are_those_of_the_model() -> None:
    config = adapting_config(str(uninterrupted()), "no/such/run")
    assert config.model == replace(load_config(uninterrupted()).model, pooler=False)
    # Not 256, because rows were shorter in training.
    trained = load_config(uninterrupted()).data
    assert (config.data.sequence_length, config.data.packing) == (trained.sequence_length, trained.packing)
    assert (config.init_from, config.output_dir) == (str(uninterrupted()), "no/such/run")


def test_rows_are_as_long_as_a_model_becomes() -> None:
    for length, rows in ((60, 60), (24, 20), (10, 10)):
        config = adapting_config(str(uninterrupted()), "no/such/run", length)
        assert (config.model.max_sequence_length, config.data.sequence_length) == (length, rows)


def test_steps_and_warmup_follow_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    totals = json.loads((prepared() / "manifest.json").read_text())["totals"]
    data = DataConfig(path=str(prepared()), sequence_length=18)
    config = TrainConfig(data=data, batch_size=4, init_from="MODEL", output_dir=str(tmp_path / "run"))
    found = completed(config, set())
    steps = 3 * totals["tokens"] / 16 / 4
    assert steps <= found.num_steps < steps + 1
    assert 0.06 * steps <= found.optimizer.warmup_steps < 0.06 * steps + 2
    assert found.data.eval_path is None
    said = capsys.readouterr().err
    assert f"continues MODEL on {prepared()} ({totals['tokens']:,} tokens)" in said
    assert "about 3.0 passes" in said
    by_document = completed(replace(config, data=replace(data, packing="document")), set())
    assert by_document.num_steps >= 3 * totals["documents"] / 4
    kept = completed(replace(config, num_steps=7), {"num_steps", "optimizer.warmup_steps"})
    assert (kept.num_steps, kept.optimizer.warmup_steps) == (7, 0)
    assert f"about {21 / steps:.1g} passes" in capsys.readouterr().err
    # The learning rate of the first step of a warm-up is 0.
    assert completed(replace(config, num_steps=1), {"num_steps"}).optimizer.warmup_steps == 0
    with pytest.raises(InputError, match=r"data\.path: must be given"):
        completed(TrainConfig(), set())


@pytest.mark.slow
def test_the_command_continues_a_run_and_resumes_what_it_started(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", "--from", uninterrupted(), "--data.path", prepared(), "--output-dir", run)
    ended = run_script(*command, "--num-steps", 3, "--batch-size", 8)
    assert ended.returncode == 0, ended.stderr
    assert f"weights from {uninterrupted()}: " in ended.stderr
    assert re.search(r"parameters, all \d+ tensors used\n", ended.stderr)
    assert "3 steps" in ended.stderr
    again = run_script(*command)
    assert again.returncode == 0, again.stderr
    assert "already finished, at step 3 of 3" in again.stderr


@pytest.mark.slow
def test_text_is_prepared_on_the_way(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"the cook saw {number} birds in the tree\n" for number in range(400)))
    command = ("train", "--from", uninterrupted(), "--texts", text, "--output-dir", tmp_path / "run")
    ended = run_script(*command, "--num-steps", 2, "--batch-size", 8)
    assert ended.returncode == 0, ended.stderr
    config = load_config(tmp_path / "run")
    assert config.data.path == str(tmp_path / "run-data")
    assert config.data.eval_path == str(tmp_path / "run-data" / "eval")
    again = run_script(*command)
    assert "already finished, at step 2 of 2" in again.stderr
    both = run_script(*command, "--data.path", prepared())
    assert both.returncode == 2
    assert "--texts and --data.path: must be one of them" in both.stderr


def test_a_few_documents_are_prepared_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hash holds out one document in twenty, which may be none of a few."""
    text = tmp_path / "text.txt"
    text.write_text("the cook saw birds\nthe birds saw a tree\n")
    config = TrainConfig(
        init_from=str(uninterrupted()),
        output_dir=str(tmp_path / "run"),
        data=DataConfig(path=str(tmp_path / "data")),
    )
    for state in ("2 documents", "already complete, nothing to do"):
        prepare_texts([str(text)], config)
        told = capsys.readouterr().err
        assert state in told
        assert ("too few documents to hold some out: the run has no evaluation" in told) == (
            state == "2 documents"
        )
    assert completed(config, set()).data.eval_path is None
    text.write_text("the cook saw a tree\n")
    with pytest.raises(InputError, match="other"):
        prepare_texts([str(text)], config)


def test_a_run_that_has_started_needs_its_source_no_longer(tmp_path: Path) -> None:
    run, text = tmp_path / "run", tmp_path / "text.txt"
    shutil.copytree(uninterrupted(), run)
    text.write_text("the cook saw birds\n")
    config = TrainConfig(init_from="gone", output_dir=str(run), data=DataConfig(path=str(tmp_path / "data")))
    prepare_texts([str(text)], config)
    assert Tokenizer.load(tmp_path / "data" / "tokenizer").fingerprint == tokenizer().fingerprint


def test_texts_need_a_model_in_place_of_a_config(tmp_path: Path) -> None:
    config = write_config(config_of(tmp_path / "run"))
    refused = run_script("train", config, "--texts", tmp_path / "text.txt")
    assert refused.returncode == 2
    assert "--texts: needs --from MODEL without a config" in refused.stderr


def test_text_is_not_prepared_for_a_run_that_cannot_start(tmp_path: Path) -> None:
    text, file = tmp_path / "text.txt", tmp_path / "file"
    text.write_text("\n".join(documents()[:60]))
    file.write_text("x")
    vocabulary = tmp_path / "vocabulary"
    tokenizer().save(vocabulary)
    too_long = ("--data.sequence-length", 1024)
    for model, output, settings, message in (
        (uninterrupted(), file, (), "is a file; must be a folder"),
        (uninterrupted(), "", (), "the output must have a name"),
        (uninterrupted(), "/", (), "has no name: --texts needs an --output-dir with one"),
        (uninterrupted(), tmp_path / "run", too_long, "data.sequence_length = 1024: must be at most"),
        (vocabulary, tmp_path / "run", (), "not a known model format"),
        (tmp_path / "nothing", tmp_path / "run", (), "no such folder, and no built-in name"),
    ):
        done = run_script("train", "--from", model, "--texts", text, "--output-dir", output, *settings)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "text.txt", "vocabulary"]


def test_without_config_and_model_the_usage_is_shown() -> None:
    refused = run_script("train", "--data.path", prepared())
    assert refused.returncode == 2
    assert "(CONFIG | --from MODEL) [--setting value …]" in refused.stderr


def test_all_differences_are_told_at_once() -> None:
    wanted = replace(MODEL, num_layers=MODEL.num_layers + 1, layer_norm_epsilon=1e-3)
    with pytest.raises(
        InputError,
        match=r"has model\.num_layers = .*: must be .*; model\.layer_norm_epsilon = .*as in the run",
    ):
        params_to_start_from(str(uninterrupted()), wanted, tokenizer(), 0)


def test_the_tokenizer_of_a_model_prepares_its_data(tmp_path: Path) -> None:
    assert find_tokenizer(str(uninterrupted())) == uninterrupted() / "tokenizer"
    assert Tokenizer.load(find_tokenizer(str(uninterrupted()))).fingerprint == tokenizer().fingerprint
    (tmp_path / "vocab.txt").write_text("")
    assert find_tokenizer(str(tmp_path)) == tmp_path
    assert find_tokenizer("no/such/folder") == Path("no/such/folder")
