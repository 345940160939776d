"""The launch templates: what shellcheck and Kubernetes' schema say of them, and what they do with stand-ins."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mlm_jax.errors import EXIT_BAD_INPUT
from tests.run_small import ROOT

LAUNCH = ROOT / "scripts" / "launch"


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_sweep.sbatch", "tpu_queued_resource.sh"])
def test_shellcheck_finds_nothing(script: str) -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    checked = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def jobset() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_jobs_of_the_jobset_fit_the_schema_of_kubernetes() -> None:
    manifest = jobset()
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(manifest["spec"]) <= {"failurePolicy", "replicatedJobs", "network", "successPolicy"}
    assert set(manifest["spec"]["failurePolicy"]) == {"maxRestarts", "rules"}
    for replicated in manifest["spec"]["replicatedJobs"]:
        assert set(replicated) == {"name", "replicas", "template"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **replicated["template"]}
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_jobset_starts_a_config_that_there_is_on_the_chips_it_asks_for() -> None:
    spec = jobset()["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (ROOT / container["command"][1]).is_file()
    assert (ROOT / container["command"][2]).is_file()
    width, height = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    # The pods of a slice have numbers, by which they find each other.
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"] == width * height


def test_the_jobset_does_not_start_again_what_was_asked_wrongly() -> None:
    spec = jobset()["spec"]
    assert spec["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    for replicated in spec["replicatedJobs"]:
        (rule,) = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
        assert rule == {
            "action": "FailJob",
            "onExitCodes": {"operator": "In", "values": [EXIT_BAD_INPUT]},
        }


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_sweep.sbatch"])
def test_slurm_sends_the_signal_that_a_run_saves_at_and_may_queue_it_again(script: str) -> None:
    lines = (LAUNCH / script).read_text().splitlines()
    assert {"#SBATCH --signal=TERM@120", "#SBATCH --requeue"} <= set(lines)


def test_the_processes_of_a_run_are_left_the_time_to_save() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    (srun,) = (line for line in lines if line.startswith("srun "))
    assert "--kill-on-bad-exit=0" in srun


def run_with(tmp_path: Path, script: str, stand_ins: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code, and what the stand-ins noted of their calls."""
    notes = tmp_path / "notes"
    notes.touch()
    for name, body in stand_ins.items():
        file = tmp_path / name
        file.write_text(f'#!/bin/bash\nprintf "%s|" {name} "$@" >> {notes}; echo >> {notes}\n{body}\n')
        file.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_COUNT": "4",
        "POLL_SECONDS": "0",
    }
    ended = subprocess.run(
        [LAUNCH / script, *arguments], cwd=ROOT, env=environment, capture_output=True, check=False, timeout=60
    )
    return ended.returncode, notes.read_text()


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (75, True), (1, False)])
@pytest.mark.parametrize(
    ("script", "started"),
    [
        ("slurm.sbatch", "|scripts/train.py|config.py|--output|a b|\n"),
        ("slurm_sweep.sbatch", "|scripts/ablate.py|config.py|--output|a b|--index|2|--count|4|\n"),
    ],
)
def test_slurm_queues_again_what_a_signal_stopped(
    tmp_path: Path, script: str, started: str, code: int, queued_again: bool
) -> None:
    stand_ins = {"srun": f"exit {code}", "scontrol": ""}
    ended, notes = run_with(tmp_path, script, stand_ins, "config.py", "--output", "a b")
    assert ended == code
    assert started in notes
    assert ("scontrol|requeue|7|" in notes) == queued_again


def test_a_queued_resource_is_made_waited_for_and_used(tmp_path: Path) -> None:
    gcloud = f"""
case "$*" in
    *describe*) cat {tmp_path}/state 2>/dev/null; echo ACTIVE > {tmp_path}/next
                [ -e {tmp_path}/state ] && mv {tmp_path}/next {tmp_path}/state ;;
    *create*) echo WAITING_FOR_RESOURCES > {tmp_path}/state ;;
esac
"""
    arguments = ("bert", "us-west4-a", "v5litepod-16", "config.py", "--output-dir", "a b")
    stand_ins = {"gcloud": gcloud, "git": "echo https://example.org/mlm_jax"}
    ended, notes = run_with(tmp_path, "tpu_queued_resource.sh", stand_ins, *arguments)
    assert ended == 0
    assert notes.count("|create|bert|") == 1
    assert "|--accelerator-type|v5litepod-16|" in notes
    assert "|ssh|bert|--zone|us-west4-a|--worker|all|--command|" in notes
    assert r"scripts/train.py config.py --output-dir a\ b" in notes
    _, notes = run_with(tmp_path, "tpu_queued_resource.sh", stand_ins, *arguments)
    assert notes.count("|create|bert|") == 1


def test_a_queued_resource_needs_to_know_what_to_run(tmp_path: Path) -> None:
    ended, notes = run_with(tmp_path, "tpu_queued_resource.sh", {"gcloud": ""}, "bert", "us-west4-a")
    assert (ended, notes) == (2, "")


def test_a_queued_resource_that_failed_is_told(tmp_path: Path) -> None:
    arguments = ("bert", "us-west4-a", "v5litepod-16", "config.py")
    ended, notes = run_with(
        tmp_path, "tpu_queued_resource.sh", {"gcloud": "echo FAILED", "git": "echo x"}, *arguments
    )
    assert ended == 1
    assert "ssh" not in notes
