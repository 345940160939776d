"""Runs of several processes equal those of one, on any mesh and when the number of processes changes."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mlm_jax.config import MeshConfig
from mlm_jax.run.records import read_records
from tests.jobs import JOIN, Job, run_job, wide_config
from tests.run_small import learned, run_script_alone, write_config

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
from mlm_jax.commands.config_flags import parse_config
from mlm_jax.config.files import load_config
from mlm_jax.parallel.distributed import join
from mlm_jax.run.trainer import train
configs = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
flags = [argument for argument in sys.argv[1:] if argument.startswith("--")]
join(parse_config([configs[0], *flags], prog="").distributed)
for config in configs:
    train(load_config(config))
"""


TRAIN_TO = f"""
import sys
last = int(sys.argv.pop(1))
{JOIN}
from mlm_jax.run.reporting import Reporter
from mlm_jax.run.trainer import train
report = Reporter.step
def step(self, number, metrics):
    if number == last - 1 and number < config.num_steps - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    report(self, number, metrics)
Reporter.step = step
train(config)
"""


def write_meshes(folder: Path, names: list[str]) -> list[Path]:
    return [write_config(wide_config(folder / name, mesh=MESHES[name]), f"{name}.json") for name in names]


def assert_same_losses(run: Path, reference: Path) -> None:
    """Asserts equal losses within 1e-5, and the same masked tokens."""
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
    one = write_config(wide_config(folder / "one"), "one.json")
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(run_script_alone, "train", one)
        run_job(folder, 1, 8, "-c", TRAIN_EACH, *write_meshes(folder, ["data"]))
    assert ended.result().returncode == 0, ended.result().stderr
    return folder


@pytest.mark.slow
def test_two_processes_train_as_one(one_process: Path, tmp_path: Path) -> None:
    """Started by the script and its flags; only the first process writes files and messages."""
    config = write_config(wide_config(tmp_path / "run"))
    told = run_job(tmp_path, 2, 4, "scripts/train.py", config)
    assert_same_losses(tmp_path / "run", one_process / "data")
    assert_same_losses(tmp_path / "run", one_process / "one")
    assert "finished 12 steps" in told[0]
    assert [line for line in told[1].splitlines() if "Gloo" not in line] == []
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in (one_process / "data").iterdir()}
    # Written only once: the size of an event does not depend on its values.
    sizes = [
        [file.stat().st_size for file in (run / "tensorboard").iterdir()]
        for run in (tmp_path / "run", one_process / "data")
    ]
    assert sizes[0] == sizes[1]
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["distributed"]
    # The config.json of the run can be used anywhere.
    assert stored == {"coordinator": None, "num_processes": None, "process_id": None, "timeout_seconds": 60}


@pytest.mark.release
def test_slurm_needs_no_flags(tmp_path: Path) -> None:
    """With the variables that `srun` sets for two tasks on one node."""

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


@pytest.mark.release
@pytest.mark.parametrize(
    ("processes", "devices", "meshes"), [(2, 4, list(MESHES)), (4, 2, ["data", "fsdp", "tensor"])]
)
def test_any_mesh_over_processes_equals_one_process(
    one_process: Path, tmp_path: Path, processes: int, devices: int, meshes: list[str]
) -> None:
    run_job(tmp_path, processes, devices, "-c", TRAIN_EACH, *write_meshes(tmp_path, meshes))
    for name in meshes:
        assert_same_losses(tmp_path / name, one_process / "one")


@pytest.mark.release
def test_a_run_resumes_with_any_number_of_devices_and_processes(one_process: Path, tmp_path: Path) -> None:
    """8 devices, 2 in two processes, 1, and 8 in four: equal to an uninterrupted run on one device."""
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


CANNOT_READ = f"""{JOIN}
import orbax.checkpoint as ocp
from mlm_jax.run.trainer import train
restore = ocp.PyTreeCheckpointHandler.restore
def fails(self, folder, args):
    if "/12/" in str(folder) and config.distributed.process_id == 1:
        raise OSError("Stale file handle")
    return restore(self, folder, args=args)
ocp.PyTreeCheckpointHandler.restore = fails
train(config)
"""


@pytest.mark.release
def test_a_checkpoint_that_one_process_cannot_read_is_damaged_for_all(
    one_process: Path, tmp_path: Path
) -> None:
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


READS = f"""{JOIN}
from mlm_jax.data.batches import Rows
from mlm_jax.run import trainer
# Before training, every process reads the same sample.
trainer.check_masking = lambda *_: None
read = Rows.read
Rows.read = lambda self, numbers: read(self, numbers) if len(numbers) <= 4 else os._exit(9)
trainer.train(config)
"""


@pytest.mark.slow
def test_each_process_reads_only_its_own_rows(tmp_path: Path) -> None:
    """Four of the eight rows of a step, also in evaluations."""
    config = write_config(wide_config(tmp_path / "run", num_steps=3))
    run_job(tmp_path, 2, 1, "-c", READS, config)
