"""Runs of several real processes: the run of one process, faults that end all of them, starts that do not fit."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlm_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.metrics import read_records
from tests.jobs import Job, free_port, run_job
from tests.run_small import MODEL, config_of, learned, prepared, run_script, write_config

# Eight ways of anything divide it.
WIDE = replace(MODEL, num_heads=8, vocabulary_multiple=8)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=1, tensor=8),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
    # Axes that span processes within, not between, what others split.
    "tensor_first": MeshConfig(data=1, fsdp=2, tensor=4),
}

TRAIN_EACH = """
import sys
from mlm_jax.config_files import load_config, parse_config
from mlm_jax.distributed import join
from mlm_jax.trainer import train
configs = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
flags = [argument for argument in sys.argv[1:] if argument.startswith("--")]
join(parse_config([configs[0], *flags], prog="").distributed)
for config in configs:
    train(load_config(config))
"""


TRAIN_TO = """
import os, signal, sys
from mlm_jax.config_files import parse_config
from mlm_jax.distributed import join
from mlm_jax.reporting import Reporter
from mlm_jax.trainer import train
config = parse_config(sys.argv[2:], prog="")
join(config.distributed)
last, report = int(sys.argv[1]), Reporter.step
def step(self, number, metrics):
    if number == last - 1 and number < config.num_steps - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    report(self, number, metrics)
Reporter.step = step
train(config)
"""


def wide_config(folder: Path, **changes: Any) -> TrainConfig:
    """Twelve steps that any mesh of eight divides."""
    defaults = {
        "model": WIDE,
        "mesh": MeshConfig(),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "num_steps": 12,
        "log_every": 1,
        "eval_every": 6,
        "checkpoint_every": 6,
    }
    return config_of(folder, **defaults | changes)


def write_meshes(folder: Path, names: list[str]) -> list[Path]:
    return [write_config(wide_config(folder / name, mesh=MESHES[name]), f"{name}.json") for name in names]


def assert_same_losses(run: Path, reference: Path) -> None:
    """To 1e-5, with the very same tokens masked."""
    ours, theirs = learned(run / "metrics.jsonl"), learned(reference / "metrics.jsonl")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [line["masked_tokens"] for line in ours] == [line["masked_tokens"] for line in theirs]
    assert [line["epoch"] for line in ours] == [line["epoch"] for line in theirs]
    for key in ("loss", "mlm_accuracy"):
        np.testing.assert_allclose(
            [line[key] for line in ours], [line[key] for line in theirs], rtol=0, atol=1e-5
        )
    ours, theirs = read_records(run / "eval.jsonl"), read_records(reference / "eval.jsonl")
    assert [line["masked_tokens"] for line in ours] == [line["masked_tokens"] for line in theirs]
    np.testing.assert_allclose(
        [line["mlm_loss"] for line in ours], [line["mlm_loss"] for line in theirs], rtol=0, atol=1e-5
    )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders, by mesh, of one process with eight devices; `one` has one device."""
    folder = tmp_path_factory.mktemp("one_process")
    run_job(folder, 1, 8, "-c", TRAIN_EACH, *write_meshes(folder, ["data"]))
    ended = run_script("train", write_config(wide_config(folder / "one"), "one.json"))
    assert ended.returncode == 0, ended.stderr
    return folder


def test_two_processes_train_as_one(one_process: Path, tmp_path: Path) -> None:
    """By the script and its flags; the first process alone writes files and speaks."""
    config = write_config(wide_config(tmp_path / "run"))
    told = run_job(tmp_path, 2, 4, "scripts/train.py", config)
    assert_same_losses(tmp_path / "run", one_process / "data")
    assert_same_losses(tmp_path / "run", one_process / "one")
    assert "finished 12 steps" in told[0]
    assert [line for line in told[1].splitlines() if "Gloo" not in line] == []
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in (one_process / "data").iterdir()}
    # Written once: events are of one size, whatever the figures.
    sizes = [
        [file.stat().st_size for file in (run / "tensorboard").iterdir()]
        for run in (tmp_path / "run", one_process / "data")
    ]
    assert sizes[0] == sizes[1]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["distributed"]
    # The run goes on anywhere from its own config.json.
    assert stored == {"coordinator": None, "num_processes": None, "process_id": None, "timeout_seconds": 60}


@pytest.mark.slow
def test_slurm_needs_no_flags(tmp_path: Path) -> None:
    """As `srun` would start two tasks of one node."""

    def variables(process: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(process),
            "SLURM_LOCALID": str(process),
        }

    config = write_config(wide_config(tmp_path / "run", num_steps=3))
    ended = Job(tmp_path, 2, 1, ["scripts/train.py", config], scheduler_variables=variables).ended()
    assert [end.code for end in ended] == [0, 0], ended
    assert "mesh: data 2, fsdp 1, tensor 1" in ended[0].stderr
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "meshes"), [(2, 4, list(MESHES)), (4, 2, ["data", "fsdp", "tensor"])]
)
def test_any_mesh_over_processes_gives_the_run_of_one(
    one_process: Path, tmp_path: Path, processes: int, devices: int, meshes: list[str]
) -> None:
    run_job(tmp_path, processes, devices, "-c", TRAIN_EACH, *write_meshes(tmp_path, meshes))
    for name in meshes:
        assert_same_losses(tmp_path / name, one_process / "one")


@pytest.mark.slow
def test_a_run_goes_on_with_any_devices_and_processes(one_process: Path, tmp_path: Path) -> None:
    """8 devices, then 2 of two processes, then 1, then 8 of four: the run of one device that was never stopped."""
    run = tmp_path / "run"
    for steps, processes, devices, mesh in (
        (3, 1, 8, MeshConfig(data=1, fsdp=8)),
        (6, 2, 1, MeshConfig(data=2)),
        (9, 1, 1, MeshConfig()),
        (12, 4, 2, MeshConfig(data=2, fsdp=2, tensor=2)),
    ):
        # The schedule is that of all twelve steps.
        config = wide_config(run, mesh=mesh, checkpoint_every=3)
        stop = ["-c", TRAIN_TO, steps, write_config(config)]
        run_job(tmp_path / f"job_{steps}", processes, devices, *stop)
    assert_same_losses(run, one_process / "one")


CANNOT_READ = """
import sys
import orbax.checkpoint as ocp
from mlm_jax.config_files import parse_config
from mlm_jax.distributed import join
from mlm_jax.trainer import train
config = parse_config(sys.argv[1:], prog="")
join(config.distributed)
restore = ocp.PyTreeCheckpointHandler.restore
def fails(self, folder, args):
    if "/12/" in str(folder) and config.distributed.process_id == 1:
        raise OSError("Stale file handle")
    return restore(self, folder, args=args)
ocp.PyTreeCheckpointHandler.restore = fails
train(config)
"""


@pytest.mark.slow
def test_what_one_process_cannot_read_is_damaged_for_all(one_process: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(wide_config(run, mesh=MeshConfig(data=1, fsdp=2)))
    run_job(tmp_path / "first", 2, 1, "scripts/train.py", config)
    told = run_job(tmp_path / "second", 2, 1, "-c", CANNOT_READ, config)
    damaged = (
        f"warning: checkpoint {run / 'checkpoints' / '12'} is damaged: arrays: another process could not"
    )
    assert damaged in told[0]
    assert "step 7/12: loss" in told[0]
    assert_same_losses(run, one_process / "one")


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Job]:
    """Two processes in the middle of a run that would take hours."""
    config = write_config(wide_config(tmp_path / "run", num_steps=10**6, eval_every=10**6))
    job = Job(tmp_path, 2, 1, ["scripts/train.py", config])
    try:
        job.wait_for("step 8/")
        yield job
    finally:
        job.kill()


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_stops_all_at_one_saved_step(
    endless: Job, tmp_path: Path, victim: int
) -> None:
    endless.processes[victim].send_signal(signal.SIGTERM)
    ended = endless.ended()
    assert [end.code for end in ended] == [75, 75], ended
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    name = "a signal to another process" if victim else "SIGTERM"
    assert f"{tmp_path / 'run'}: stopped by {name} at step {step:,}, saved" in ended[0].stderr
    (*_, last) = read_records(tmp_path / "run" / "metrics.jsonl")
    assert last["step"] == step
    told = run_job(
        tmp_path / "again", 2, 1, "scripts/train.py", tmp_path / "config.json", f"--num-steps={step + 2}"
    )
    assert f"finished {step + 2:,} steps" in told[0]


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        (0, signal.SIGKILL),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_or_stops_is_named_and_ends_the_others(
    endless: Job, tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    """15 seconds are the timeout; a killed process is often noticed at once."""
    survivor = 1 - victim
    endless.processes[victim].send_signal(number)
    (ended,) = endless.ended(survivor)
    assert ended.code == 1, ended.stderr
    assert ended.seconds < 45
    error = ended.stderr.splitlines()[-1]
    named = rf"error: process {victim} \(host .+, pid {endless.processes[victim].pid}; in step [\d,]+\)"
    assert re.match(named, error), ended.stderr
    if number == signal.SIGSTOP:
        assert "gave no sign of life for " in error
    end = rf"; the same command goes on from the last checkpoint \(process {survivor}, in step [\d,]+\)$"
    assert re.search(end, error), error
    endless.kill()
    # None where the first save was still under way.
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()]
    step = max(map(int, saved), default=0)
    again = ["scripts/train.py", tmp_path / "config.json", f"--num-steps={step + 2}"]
    assert f"finished {step + 2:,} steps" in run_job(tmp_path / "again", 2, 1, *again)[0]


@pytest.mark.slow
def test_a_job_that_stood_still_as_a_whole_goes_on(endless: Job) -> None:
    """Longer than the timeout, as where the machines of a job are moved: nobody was silent for the others."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in endless.processes:
            process.send_signal(number)
        time.sleep(18)
    endless.processes[1].send_signal(signal.SIGTERM)
    assert [end.code for end in endless.ended()] == [75, 75], endless.stderr(0)


READS = """
import os, sys
from mlm_jax.config_files import parse_config
from mlm_jax.data.batches import Rows
from mlm_jax.distributed import join
from mlm_jax.trainer import train
config = parse_config(sys.argv[1:], prog="")
join(config.distributed)
read = Rows.read
Rows.read = lambda self, numbers: read(self, numbers) if len(numbers) <= 4 else os._exit(9)
train(config)
"""


@pytest.mark.slow
def test_each_process_reads_its_own_rows_alone(tmp_path: Path) -> None:
    """Of eight a step four, in evaluation too."""
    config = write_config(wide_config(tmp_path / "run", num_steps=3))
    run_job(tmp_path, 2, 1, "-c", READS, config)


LATE = """
import sys, time
from mlm_jax import trainer
from mlm_jax.config_files import parse_config
from mlm_jax.distributed import join
config = parse_config(sys.argv[1:], prog="")
join(config.distributed)
draw = trainer._draw_losses
trainer._draw_losses = lambda folder: (time.sleep(22), draw(folder))
trainer.train(config)
"""


@pytest.mark.slow
def test_who_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    """The first process writes for longer than the timeout when the other has nothing left to do."""
    config = write_config(wide_config(tmp_path / "run", num_steps=3))
    ended = Job(tmp_path, 2, 1, ["-c", LATE, config]).ended()
    assert [end.code for end in ended] == [0, 0], ended


HANGS = """
import sys, time
from mlm_jax.config_files import parse_config
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.distributed import join
from mlm_jax.trainer import train
config = parse_config(sys.argv[1:], prog="")
join(config.distributed)
batch = TrainingBatches.batch
def hang(self, step):
    if step == 20 and config.distributed.process_id == 1:
        time.sleep(3600)
    return batch(self, step)
TrainingBatches.batch = hang
train(config)
"""


@pytest.mark.slow
def test_a_process_whose_loop_hangs_is_named(tmp_path: Path) -> None:
    """Its beats go on; the others wait for it in a collective, turns ahead."""
    config = write_config(wide_config(tmp_path / "run", num_steps=10**6, eval_every=10**6))
    job = Job(tmp_path, 2, 1, ["-c", HANGS, config])
    try:
        for ended in job.ended():
            assert ended.code == 1
            assert re.search(
                r"error: process 1 \(host .+; in step 20\) made no progress for \d+ s", ended.stderr
            ), ended.stderr
    finally:
        job.kill()


def test_what_one_process_fails_of_is_told_by_all(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run"))
    commands = [["scripts/train.py", config], ["scripts/train.py", config, "--data.path=/nowhere"]]
    first, second = Job(tmp_path, 2, 1, commands).ended()
    assert second.code == 2
    own = second.stderr.splitlines()[-1]
    assert own.startswith("error: /nowhere")
    assert first.code == 1
    assert "error: process 1 (host" in first.stderr
    assert own.removeprefix("error: ") in first.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_started_differently_are_told_in_what(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run"))
    train = ["scripts/train.py", config]
    for number, (flag, difference) in enumerate(
        [
            (
                "--optimizer.learning-rate=0.5",
                "optimizer.learning_rate: 0.001 in process 0, 0.5 in process 1",
            ),
            (f"--data.path={prepared(0, 150)}", "training data: "),
            (f"--data.eval-path={prepared(0, 150)}", "evaluation data: "),
        ]
    ):
        for ended in Job(tmp_path / str(number), 2, 1, [train, [*train, flag]]).ended():
            assert ended.code == 2, ended.stderr
            error = ended.stderr.splitlines()[-1]
            assert error.startswith(f"error: {difference}")
            assert error.endswith("must be the same in all")
    assert not (tmp_path / "run").exists()


def test_a_job_that_never_comes_together_ends_in_time(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run"))
    free, stale = free_port(), free_port()
    place = [f"--distributed.coordinator=127.0.0.1:{free}", "--distributed.num-processes=2"]
    first = run_script(
        "train", config, *place, "--distributed.process-id=0", "--distributed.timeout-seconds=6"
    )
    assert first.returncode == 2
    assert (
        f"error: distributed.coordinator = 127.0.0.1:{free}: the processes did not come together"
        in first.stderr
    )
    place[0] = f"--distributed.coordinator=127.0.0.1:{stale}"
    second = run_script(
        "train", config, *place, "--distributed.process-id=1", "--distributed.timeout-seconds=6"
    )
    assert second.returncode == 2
    assert second.stderr == (
        f"error: distributed.coordinator = 127.0.0.1:{stale}: Connection refused for 6 s: "
        "must be where process 0 listens\n"
    )


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run"))
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = run_script(
            "train",
            config,
            f"--distributed.coordinator=127.0.0.1:{port}",
            "--distributed.num-processes=2",
            "--distributed.process-id=0",
        )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: distributed.coordinator = 127.0.0.1:{port}: Address already in use: "
        "must be a free port of this machine\n"
    )
