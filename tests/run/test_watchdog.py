"""Jobs of several processes: signals, faults, and starts that do not match."""

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from mlm_jax.run.records import read_records
from tests.jobs import JOIN, Job, free_port, run_job, wide_config
from tests.run_small import prepared, run_script_alone, write_config


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Job]:
    """Two processes in the middle of a run of hours."""
    config = write_config(wide_config(tmp_path / "run", num_steps=10**6, eval_every=10**6))
    job = Job(tmp_path, 2, 1, ["scripts/train.py", config])
    try:
        job.wait_for("step 8/")
        yield job
    finally:
        job.kill()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.release), 1])
def test_a_signal_to_one_process_stops_all_at_the_same_saved_step(
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
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.release),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_the_others_end_and_name_a_process_that_dies_or_stops(
    endless: Job, tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    """The timeout is 15 seconds; a killed process is often noticed sooner."""
    survivor = 1 - victim
    endless.processes[victim].send_signal(number)
    (ended,) = endless.ended(survivor)
    assert ended.code == 1, ended.stderr
    assert ended.seconds < 45
    error = ended.stderr.splitlines()[-1]
    named = rf"error: process {victim} \(host .+, pid {endless.processes[victim].pid}, step [\d,]+\)"
    assert re.match(named, error), ended.stderr
    if number == signal.SIGSTOP:
        assert "sent no heartbeat for " in error
    end = rf"; rerun the same command to resume from the last checkpoint \(process {survivor}, step [\d,]+\)$"
    assert re.search(end, error), error
    endless.kill()
    # None where the first save was still under way.
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal()]
    step = max(map(int, saved), default=0)
    again = ["scripts/train.py", tmp_path / "config.json", f"--num-steps={step + 2}"]
    assert f"finished {step + 2:,} steps" in run_job(tmp_path / "again", 2, 1, *again)[0]


def job_with_its_keeper_stopped(tmp_path: Path) -> Job:
    """Four processes: the third is stopped for some seconds, the first just before the third continues."""
    config = write_config(wide_config(tmp_path / "run", num_steps=10**6, eval_every=10**6))
    job = Job(tmp_path, 4, 1, ["scripts/train.py", config])
    try:
        job.wait_for("step 8/")
        job.processes[2].send_signal(signal.SIGSTOP)
        time.sleep(6)
        job.processes[0].send_signal(signal.SIGSTOP)
        job.processes[2].send_signal(signal.SIGCONT)
    except BaseException:
        job.kill()
        raise
    return job


@pytest.mark.release
def test_only_the_process_with_the_records_is_blamed(tmp_path: Path) -> None:
    """While the first process is stopped, the others do not hear from each other either.

    Nor is one to blame that was last heard of some seconds before.
    """
    job = job_with_its_keeper_stopped(tmp_path)
    try:
        for ended in job.ended(1, 2, 3):
            assert ended.code == 1, ended.stderr
            assert re.match(r"error: process 0 \([^)]+\) sent no heartbeat", ended.stderr.splitlines()[-1]), (
                ended.stderr
            )
    finally:
        job.kill()


@pytest.mark.release
def test_no_process_is_blamed_for_heartbeats_that_were_not_recorded(tmp_path: Path) -> None:
    """One process and then the first are stopped, each for less than the timeout: the run continues."""
    job = job_with_its_keeper_stopped(tmp_path)
    try:
        time.sleep(11)
        job.processes[0].send_signal(signal.SIGCONT)
        job.wait_for("step 40/")
        assert all(process.poll() is None for process in job.processes)
    finally:
        job.kill()


IMPATIENT = f"""{JOIN}
import jax
from mlm_jax.run.watchdog import Watchdog
with Watchdog(6 if jax.process_index() == 1 else 600) as job:
    job.heartbeat(1)
    if jax.process_index() == 2:
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
"""


@pytest.mark.release
def test_all_processes_report_the_verdict_of_one(tmp_path: Path) -> None:
    """On its own, the first would wait for ten minutes, and then find two processes silent."""
    config = write_config(wide_config(tmp_path / "run"))
    job = Job(tmp_path, 3, 1, ["-c", IMPATIENT, config])
    try:
        for ended in job.ended(0, 1):
            assert ended.code == 1
            assert re.match(
                r"error: process 2 \([^)]+\) sent no heartbeat for \d s", ended.stderr.splitlines()[-1]
            ), ended.stderr
    finally:
        job.kill()


@pytest.mark.release
def test_a_job_that_was_suspended_as_a_whole_continues(endless: Job) -> None:
    """For longer than the timeout, as when the machines of a job are migrated: no process missed a heartbeat."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in endless.processes:
            process.send_signal(number)
        time.sleep(18)
    endless.processes[1].send_signal(signal.SIGTERM)
    assert [end.code for end in endless.ended()] == [75, 75], endless.stderr(0)


LATE = f"""{JOIN}
from mlm_jax.run import trainer
draw = trainer._draw_losses
trainer._draw_losses = lambda folder: (time.sleep(22), draw(folder))
trainer.train(config)
"""


@pytest.mark.release
def test_a_process_that_has_ended_is_not_silent(tmp_path: Path) -> None:
    """The first process writes for longer than the timeout after the other has ended."""
    config = write_config(wide_config(tmp_path / "run", num_steps=3))
    ended = Job(tmp_path, 2, 1, ["-c", LATE, config]).ended()
    assert [end.code for end in ended] == [0, 0], ended


HANGS = f"""{JOIN}
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.run.trainer import train
batch = TrainingBatches.batch
def hang(self, step):
    if step == 20 and config.distributed.process_id == 1:
        time.sleep(3600)
    return batch(self, step)
TrainingBatches.batch = hang
train(config)
"""


@pytest.mark.release
def test_a_process_whose_loop_hangs_is_named(tmp_path: Path) -> None:
    """Its beats continue; the others are ahead and wait for it in a collective."""
    config = write_config(wide_config(tmp_path / "run", num_steps=10**6, eval_every=10**6))
    job = Job(tmp_path, 2, 1, ["-c", HANGS, config])
    try:
        for ended in job.ended():
            assert ended.code == 1
            assert re.search(
                r"error: process 1 \(host .+, step 20\) made no progress for \d+ s", ended.stderr
            ), ended.stderr
    finally:
        job.kill()


@pytest.mark.slow
def test_all_processes_report_the_error_of_one(tmp_path: Path) -> None:
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
def test_differences_between_processes_are_listed(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_an_incomplete_job_ends_in_time(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run"))
    free, stale = free_port(), free_port()
    coordinators = [f"distributed.coordinator = 127.0.0.1:{port}" for port in (free, stale)]

    def start(process: int) -> CompletedProcess[str]:
        return run_script_alone(
            "train",
            config,
            f"--{coordinators[process].replace(' ', '')}",
            f"--distributed.process-id={process}",
            "--distributed.num-processes=2",
            "--distributed.timeout-seconds=6",
        )

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(start, (0, 1))
    assert first.returncode == second.returncode == 2
    assert f"error: {coordinators[0]}: some processes did not join" in first.stderr
    assert second.stderr == (
        f"error: {coordinators[1]}: Connection refused for 6 s: must be the address at which process 0 listens\n"
    )


def test_a_port_in_use_is_reported(tmp_path: Path) -> None:
    config = write_config(wide_config(tmp_path / "run"))
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        ended = run_script_alone(
            "train",
            config,
            f"--distributed.coordinator=127.0.0.1:{port}",
            "--distributed.num-processes=2",
            "--distributed.process-id=0",
        )
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: distributed.coordinator = 127.0.0.1:{port}: Address already in use: "
        "must be a free port on this machine\n"
    )
