"""Messages of a run, on a terminal and elsewhere, and the error that ends a diverged run."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from mlm_jax.config import OptimizerConfig, TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.sources import open_run_data, resolve_masking
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.run import reporting, trainer
from mlm_jax.run.records import read_records
from mlm_jax.run.reporting import announced_if_slow, describe_start
from mlm_jax.run.trainer import train
from mlm_jax.step.program import build_program
from tests.run_small import (
    ROOT,
    arrays_of,
    config_of,
    environment,
    run_script,
    tokenizer,
    told_by_uninterrupted,
    uninterrupted,
    write_config,
)

STEP_KEYS = [
    *("step", "epoch", "loss", "mlm_accuracy", "masked_tokens", "grad_norm", "learning_rate"),
    *("tokens_per_second", "real_tokens_per_second", "sequences_per_second", "step_seconds", "mfu"),
]


# On a busy machine.
SLOW_WORK = re.compile(
    r"opening the data|initializing the parameters|step \d+: evaluating|writing the last checkpoint"
)


def train_here(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` in this process, on the first of its eight devices."""
    monkeypatch.setattr(trainer, "make_mesh", partial(make_mesh, devices=jax.devices()[:1]))
    train(config)


@pytest.mark.slow
def test_each_logged_step_is_a_line_with_the_documented_keys() -> None:
    records = read_records(uninterrupted() / "metrics.jsonl")
    assert [list(record) for record in records] == [STEP_KEYS] * 20
    assert [record["step"] for record in records] == list(range(2, 41, 2))
    last = records[-1]
    assert last["mfu"] is None
    assert last["epoch"] == pytest.approx(40 * 8 / 197)
    assert last["sequences_per_second"] * last["step_seconds"] == pytest.approx(8)
    assert last["tokens_per_second"] == pytest.approx(20 * last["sequences_per_second"])
    assert last["real_tokens_per_second"] <= last["tokens_per_second"]
    assert 0 < last["loss"] < records[0]["loss"] < np.log(300) + 0.1


@pytest.mark.slow
def test_a_line_has_the_means_over_the_steps_since_the_previous_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "each", num_steps=6, log_every=1)
    train_here(config, monkeypatch)
    train_here(replace(config, output_dir=str(tmp_path / "some"), log_every=4), monkeypatch)
    each, some = (read_records(tmp_path / name / "metrics.jsonl") for name in ("each", "some"))
    assert [record["step"] for record in some] == [4, 6]
    for line, steps in zip(some, (each[:4], each[4:]), strict=True):
        weights = [record["masked_tokens"] for record in steps]
        assert line["masked_tokens"] == sum(weights)
        for key in ("loss", "mlm_accuracy"):
            assert line[key] == pytest.approx(np.average([r[key] for r in steps], weights=weights), rel=1e-12)
        assert (line["grad_norm"], line["learning_rate"]) == (
            steps[-1]["grad_norm"],
            steps[-1]["learning_rate"],
        )


def test_evaluations_are_logged_with_their_keys() -> None:
    records = read_records(uninterrupted() / "eval.jsonl")
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    for record in records:
        assert list(record) == ["step", "epoch", "mlm_loss", "mlm_accuracy", "perplexity", "masked_tokens"]
        assert record["perplexity"] == pytest.approx(np.exp(record["mlm_loss"]))
    assert len({record["masked_tokens"] for record in records}) == 1
    assert records[-1]["mlm_loss"] < records[0]["mlm_loss"]


def test_each_logged_step_is_printed_without_a_terminal() -> None:
    told = told_by_uninterrupted()
    lines = [line for line in told.splitlines() if not SLOW_WORK.fullmatch(line)]
    assert lines[:5] == [
        "model: 8,076 parameters; mesh: data 1, fsdp 1, tensor 1 of cpu",
        "data: 197 rows of 20 tokens, 24.6 steps per epoch",
        "masking: 15% of the tokens, at most 3 per row",
        "compute: float32 (the default on cpu), layers in a loop (one layer), attention xla, remat none",
        "compiling the training step",
    ]
    assert re.fullmatch(r"memory per device: parameters .* MiB, .* MiB", lines[5])
    assert re.fullmatch(r"step 1: loss 5\.\d{4}, 1\d\.\d\d% of the selectable tokens masked", lines[6])
    logged = [line for line in lines if re.match(r"step \d+/40: ", line)]
    pattern = r"step (\d+)/40: loss \d\.\d{4}, [\d,]+ tokens/s, \d\d:\d\d left"
    assert [int(re.fullmatch(pattern, line)[1]) for line in logged] == list(range(2, 41, 2))
    assert "step 40: evaluation loss " in told
    assert lines[-1] == f"{uninterrupted()}: finished 40 steps"
    assert "warning" not in told
    assert "\r" not in told


def on_a_terminal(config: Path, columns: int) -> str:
    """Returns what `scripts/train.py` writes to a terminal of that width."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "scripts/train.py", str(config)], cwd=ROOT, env=environment(), stderr=there
    )
    os.close(there)
    sent = b""
    while True:
        try:
            sent += os.read(here, 65536)
        except OSError:  # what Linux says when the other end is closed
            break
    os.close(here)
    assert child.wait(60) == 0, sent
    return sent.decode()


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_loss_speed_and_time_left(tmp_path: Path) -> None:
    sent = on_a_terminal(write_config(config_of(tmp_path / "run")), columns=100)
    bars = [part for part in re.split(r"[\r\n]+", sent) if "/40 [" in part]
    pattern = r"\s*\d+%\|.*\| +\d+/40 \[\d\d:\d\d, \d\d:\d\d left, loss \d\.\d{3}, [\d,]+ tokens/s\]"
    assert any(re.fullmatch(pattern, bar) for bar in bars), bars
    assert all(len(bar) <= 100 for bar in bars)
    assert "100%" in bars[-1]
    assert not re.search(r"step \d+/40: ", sent), "each logged step is in the bar, and needs no line"
    assert "step 40: evaluation loss " in sent


def test_unexpected_masks_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = MaskingRecipe(mask_selection_length=1)
    # Windows of one and of two steps: the figures in the lines differ, what is wrong does not.
    config = config_of(tmp_path / "run", masking=recipe, num_steps=7, log_every=2)
    train_here(config, monkeypatch)
    told = capsys.readouterr().err
    assert told.count("warning: mask_selection_length = 1 clips 100.0% of the rows") == 1
    assert told.count("mask_selection_rate = 0.15 gives") == 1


def test_a_non_finite_loss_eventually_stops_the_run(tmp_path: Path) -> None:
    absurd = OptimizerConfig(learning_rate=1e16, max_grad_norm=None)
    config = config_of(tmp_path / "run", optimizer=absurd, checkpoint_every=3, max_nonfinite_steps=5)
    ended = run_script("train", write_config(config))
    assert ended.returncode == 1, ended.stderr
    skipped = [int(step) for step in re.findall(r"warning: step (\d+) was skipped: loss", ended.stderr)]
    assert skipped == list(range(skipped[0], skipped[0] + 5))
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: step {skipped[-1]}: 5 consecutive steps had a non-finite loss, gradient or update"
    )
    assert "optimizer.learning_rate" in last
    assert "Traceback" not in ended.stderr
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert max(steps) > skipped[0], "a checkpoint that was written after the first step that was skipped"
    for step in steps:
        for name, (dtype, bits) in arrays_of(tmp_path / "run", step).items():
            assert np.isfinite(np.frombuffer(bits, dtype)).all(), f"{name} of step {step}"


def test_only_slow_work_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reporting, "_SLOW_SECONDS", 3600.0)
    with announced_if_slow("evaluating"):
        pass
    monkeypatch.setattr(reporting, "_SLOW_SECONDS", 0.0)
    said = ""
    with announced_if_slow("compiling"):
        while not said:
            said = capsys.readouterr().err
    assert said == "compiling\n"


def test_the_reason_for_not_using_a_kernel_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(Path("run"))
    program = build_program(
        config, resolve_masking(config.masking, tokenizer(), 20), make_mesh(config.mesh, jax.devices()[:1])
    )
    told = replace(
        program, compute=replace(program.compute, reasons={"attention": "splash needs another length"})
    )
    describe_start(config, told, open_run_data(config.data).train)
    assert ", attention xla (splash needs another length), remat none\n" in capsys.readouterr().err
