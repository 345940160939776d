"""`mlm-jax train CONFIG --from-step N`."""

import shutil
from pathlib import Path

import pytest

from mlm_jax.config.files import load_config
from mlm_jax.run.records import read_records
from mlm_jax.run.trainer import train
from tests.run_small import arrays_of, run_script, uninterrupted


@pytest.mark.slow
def test_a_run_is_resumed_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    command = ("train", run, "--from-step", 35, "--optimizer.learning-rate", 1e-3)
    ended = run_script(*command)
    assert ended.returncode == 0, ended.stderr
    assert "resuming from step 35\nlater checkpoints are renamed to STEP.superseded: 40\n" in ended.stderr
    assert "changed since the last start: optimizer.learning_rate: 0.01 → 0.001\n" in ended.stderr
    assert "step 36: loss" in ended.stderr
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"30", "35", "40", "40.superseded"}
    assert arrays_of(run, 40) != arrays_of(uninterrupted(), 40)
    (run / "checkpoints" / "40.superseded").rename(run / "checkpoints" / "41")
    assert arrays_of(run, 41) == arrays_of(uninterrupted(), 40)
    (run / "checkpoints" / "41").rename(run / "checkpoints" / "40.superseded")
    assert [record["step"] for record in read_records(run / "metrics.jsonl")] == [*range(2, 41, 2)]

    # The same command resumes what followed, like that of any other run.
    again = run_script(*command)
    assert again.returncode == 0
    assert "resumed from step 35 before, and now from step 40\n" in again.stderr
    assert f"{run}: already finished" in again.stderr
    assert "renamed" not in again.stderr
    refused = run_script("train", run, "--from-step", 36)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {run}/checkpoints: no checkpoint of step 36; there are: 30, 35, 40\n"


@pytest.mark.slow
def test_a_kill_before_the_next_checkpoint_leaves_log_and_checkpoints_at_one_step(
    one_device: None, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted(), tmp_path / "run")
    config = load_config(run)

    def fail(step: int) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config, from_step=35, on_step=fail)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"30", "35", "40.superseded"}
    assert train(config).step == 40
    assert [record["step"] for record in read_records(run / "metrics.jsonl")] == [*range(2, 41, 2)]
    assert arrays_of(run, 40) == arrays_of(uninterrupted(), 40)
