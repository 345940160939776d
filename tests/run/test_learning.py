"""A run that learns nothing, or whose data are damaged, never ends as if all were well."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlm_jax.config import DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.sources import tokenize_run_data
from mlm_jax.data.verification import StoredFile, Verification
from mlm_jax.errors import InputError, RunError
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run import trainer
from mlm_jax.run.learning import check_masking
from mlm_jax.run.records import read_records
from mlm_jax.run.trainer import train
from mlm_jax.step import update
from mlm_jax.use.evaluate import evaluate_model
from tests.run_small import config_of, prepared, tokenizer, uninterrupted


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trains in this process, on the first of its eight devices, with a home folder of its own."""
    monkeypatch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    monkeypatch.setenv("MLM_JAX_HOME", str(tmp_path / "home"))


def short_run(folder: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"num_steps": 6, "eval_every": 6, "log_every": 2, "checkpoint_every": 2}
    return config_of(
        folder / "run", **{"optimizer": OptimizerConfig(learning_rate=1e-3)} | settings | changes
    )


def damaged(folder: Path) -> Path:
    """Returns a copy of the data in which a token is another token of the vocabulary."""
    data = shutil.copytree(prepared(), folder / "damaged")
    tokens = np.fromfile(data / "tokens-00000.bin", "<u2")
    tokens[500] = 5 if tokens[500] != 5 else 6
    tokens.tofile(data / "tokens-00000.bin")
    return data


def test_unknown_tokens_alone_are_rejected_before_anything_is_written(tmp_path: Path) -> None:
    config = replace(short_run(tmp_path), data=DataConfig(sequence_length=20))
    text, unknown = ["The statue is in Ohio."] * 9, ["統計 数字 言語"] * 9
    with pytest.raises(InputError, match=r"^data\.path: no token can be masked: its \d+ rows"):
        train(config, documents=unknown, tokenizer=tokenizer())
    with pytest.raises(InputError, match=r"^data\.eval_path: no token can be masked"):
        train(config, documents=text, eval_documents=unknown, tokenizer=tokenizer())
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_many_unknown_tokens_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = short_run(tmp_path)
    sources = tokenize_run_data(["The 統計."] * 9, None, tokenizer(), config.data)
    check_masking(sources, trainer._program(config, sources))
    assert re.match(
        r"warning: data\.path: \d\d\.\d% of the first tokens are unknown", capsys.readouterr().err
    )


@pytest.mark.slow
def test_steps_without_masked_tokens_are_reported_and_fail_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At this rate, about one token in a billion is selected."""
    masking = MaskingRecipe(selection="bernoulli", mask_selection_rate=2**-30)
    with pytest.raises(RunError, match="step 6: no step had a masked token, so the run has learned nothing"):
        train(short_run(tmp_path, masking=masking, eval_masking=masking))
    told = capsys.readouterr().err
    assert "step 1: loss none, 0.00% of the selectable tokens masked" in told
    assert told.count("is masked, so nothing is learned from them") == 1
    assert "no token of the evaluation data was masked, so they have no loss" in told
    assert [record["loss"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [None] * 3
    (evaluation,) = read_records(tmp_path / "run" / "eval.jsonl")
    assert (evaluation["mlm_loss"], evaluation["perplexity"], evaluation["masked_tokens"]) == (None, None, 0)


@pytest.mark.slow
def test_the_masks_of_a_first_step_that_is_logged_are_checked_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second check of it once reported that "none of 0 tokens is masked", and was silent when one was missing."""
    train(short_run(tmp_path, num_steps=2, log_every=1))
    told = capsys.readouterr().err
    assert "step 1: loss" in told
    assert "is masked, so nothing is learned" not in told


def skipping(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """Makes every gradient NaN from step `first` (from 1) on."""
    accumulate = update._accumulate

    def spoiled(rule: Any, seed: Any, state: Any, *arguments: Any) -> Any:
        sums, gradients = accumulate(rule, seed, state, *arguments)
        factor = jnp.where(state.step >= first - 1, jnp.nan, 1.0)
        return sums, jax.tree.map(lambda gradient: gradient * factor, gradients)

    monkeypatch.setattr(update, "_accumulate", spoiled)


@pytest.mark.slow
def test_a_run_whose_last_steps_were_all_skipped_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipping(monkeypatch, 4)
    message = "step 6: the last 3 steps were skipped, so nothing was learned after step 3"
    for _ in range(2):  # the second start finds the last checkpoint
        with pytest.raises(RunError, match=message):
            train(short_run(tmp_path))
    assert (tmp_path / "run" / "checkpoints" / "6").is_dir()


@pytest.mark.slow
def test_a_single_skipped_step_at_the_end_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    skipping(monkeypatch, 6)
    assert train(short_run(tmp_path)).finished
    assert "warning: step 6 was skipped: loss " in capsys.readouterr().err


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is that of the start, from which a lower rate goes on."""
    with pytest.raises(
        RunError, match="step 4: 4 consecutive steps had a non-finite loss, gradient or update"
    ):
        train(short_run(tmp_path, optimizer=OptimizerConfig(learning_rate=3e38), max_nonfinite_steps=4))
    assert "warning: step 1 was skipped: its update is not finite" in capsys.readouterr().err
    assert train(short_run(tmp_path)).finished


@pytest.mark.parametrize("name", ["path", pytest.param("eval_path", marks=pytest.mark.slow)])
def test_damaged_data_stop_the_run_before_its_first_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, check = short_run(tmp_path), Verification.check
    data = damaged(tmp_path)
    config = replace(config, data=replace(config.data, **{name: str(data)}))
    if name == "eval_path":
        # As if the steps were faster than the comparison, which the first checkpoint then waits for.
        monkeypatch.setattr(Verification, "check", lambda _: None)
        wait = Verification.wait

        def wait_and_check(verifying: Verification, *is_stopped: Callable[[], bool]) -> None:
            wait(verifying, *is_stopped)
            check(verifying)

        monkeypatch.setattr(Verification, "wait", wait_and_check)
    with pytest.raises(RunError, match=f"{data / 'tokens-00000.bin'}: damaged: its sha256"):
        train(config)
    assert not [*(tmp_path / "run" / "checkpoints").iterdir()]


def test_a_signal_does_not_wait_for_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(file: StoredFile, is_stopped: Callable[[], bool]) -> None:
        while not is_stopped():
            time.sleep(0.01)

    monkeypatch.setattr(StoredFile, "damage", endless)

    def terminate(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(short_run(tmp_path), on_step=terminate)
    assert (result.finished, result.step) == (False, 2)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_evaluating_on_damaged_data_fails(tmp_path: Path) -> None:
    data = damaged(tmp_path)
    with pytest.raises(RunError, match=f"{data / 'tokens-00000.bin'}: damaged: its sha256"):
        evaluate_model(uninterrupted(), data)
