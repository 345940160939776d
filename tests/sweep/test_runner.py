"""Each run of a sweep is trained once, even if a process, a trial or another process fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlm_jax.config import MeshConfig, TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.sources import open_run_data
from mlm_jax.errors import RunError
from mlm_jax.files.folder_lock import lock_folder
from mlm_jax.report import report
from mlm_jax.run.trainer import TrainResult
from mlm_jax.sweep import runner
from mlm_jax.sweep.folder import begin
from mlm_jax.sweep.plan import load_sweep
from mlm_jax.sweep.records import read_outcome
from tests.locks import held_by_another_process
from tests.run_small import (
    MODEL,
    ROOT,
    assert_same_end,
    config_of,
    environment,
    listing,
    run_python,
    run_script,
    run_script_alone,
    uninterrupted,
)
from tests.sweep.sweeps import pretend_to_train, short, with_rate, write_sweep

train = runner.train
Train = Callable[..., TrainResult]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps end without a report, because its pictures take longer than everything else here."""
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.md")


@pytest.fixture
def pretence(no_report: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps train nothing."""
    monkeypatch.setattr(runner, "train", pretend_to_train)


@pytest.mark.slow
def test_every_run_equals_that_of_train_and_is_trained_once(tmp_path: Path) -> None:
    base = config_of(tmp_path / "run")
    sweep = write_sweep(tmp_path, {"base": base, "low": with_rate(1e-3)})
    folder = tmp_path / "sweep"
    ended = run_script_alone("ablate", sweep, "--output", folder, "--seeds", 2)
    assert ended.returncode == 0, ended.stderr
    assert "[1/4] base/seed_0: sweep 0% done, time left unknown\n" in ended.stderr
    assert re.search(r"\[4/4\] low/seed_1: sweep 93% done, about \d\d:\d\d left\n", ended.stderr)
    assert_same_end(folder / "base" / "seed_0", uninterrupted())
    configs = [json.loads((folder / f"low/seed_{seed}/config.json").read_text()) for seed in (0, 1)]
    assert [config["seed"] for config in configs] == [0, 1]
    assert {config["optimizer"]["learning_rate"] for config in configs} == {1e-3}
    outcome = read_outcome(folder / "low" / "seed_1")
    assert outcome is not None
    assert (outcome.status, outcome.error, outcome.step) == ("finished", None, 6)
    assert outcome.command == f"python scripts/ablate.py {sweep} --output {folder} --seeds 2"
    assert outcome.seconds > 0
    assert {"mlm_jax", "jax", "python"} <= outcome.versions.keys()
    assert (folder / "report.md").is_file()

    before = listing(folder)
    again = run_script("ablate", sweep, "--output", folder, "--seeds", 2)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is finished\n") == 4
    changed = {name for name, digest in listing(folder).items() if before.get(name) != digest}
    assert not [name for name in changed if "seed_" in name]


@pytest.mark.slow
def test_trials_of_one_shape_are_compiled_once(tmp_path: Path) -> None:
    """With its own folder for compiled programs, because that of the other tests already has them."""
    first = replace(short(), compilation_cache_dir=str(tmp_path / "compiled"))
    trials = {
        "first": first,
        "other": replace(
            with_rate(1e-3, first), masking=MaskingRecipe(mask_token_rate=1.0, random_token_rate=0.0)
        ),
    }
    ended = run_script_alone(
        "ablate", write_sweep(tmp_path, trials), "--output", tmp_path / "sweep", "--seeds", 2
    )
    assert ended.returncode == 0, ended.stderr
    compiled = Counter(
        path.name.rpartition("-")[0].rpartition("-")[0] for path in (tmp_path / "compiled").iterdir()
    )
    assert (compiled["jit_train_step"], compiled["jit_eval_step"], compiled["jit_initial_state"]) == (1, 1, 1)


def with_a_wild_trial(happens: Callable[[], object]) -> Train:
    """Replaces `train`: calls `happens` if the learning rate is 1, as in the trial "wild"."""

    def pretend(config: TrainConfig, **options: Any) -> TrainResult:
        if config.optimizer.learning_rate == 1.0:
            happens()
        return pretend_to_train(config, **options)

    return pretend


def failing(error: Exception) -> Train:
    def fail() -> None:
        raise error

    return with_a_wild_trial(fail)


def test_a_failed_trial_is_recorded_and_the_others_continue(
    pretence: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "train", failing(RunError("step 2: diverged")))
    sweep = write_sweep(tmp_path, {"wild": with_rate(1.0), "base": short()})
    folder = tmp_path / "sweep"
    for _ in range(2):
        ended = run_script("ablate", sweep, "--output", folder, "--seeds", 1)
        assert ended.returncode == 1
        assert "failed: wild/seed_0\n" in ended.stderr
        assert "wild/seed_0 failed: step 2: diverged\n" in ended.stderr
    outcome, other = read_outcome(folder / "wild" / "seed_0"), read_outcome(folder / "base" / "seed_0")
    assert outcome is not None
    assert (outcome.status, outcome.error) == ("failed", "step 2: diverged")
    assert other is not None
    assert other.status == "finished"


@pytest.mark.parametrize(
    ("raised", "error", "said"),
    [
        (ValueError("a bug\nof two lines"), "ValueError: a bug of two lines", "Traceback"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device", ""),
    ],
)
def test_any_error_of_a_trial_is_recorded(
    pretence: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, error: str, said: str
) -> None:
    monkeypatch.setattr(runner, "train", failing(raised))
    sweep = write_sweep(tmp_path, {"wild": with_rate(1.0), "base": short()})
    ended = run_script("ablate", sweep, "--output", tmp_path / "sweep", "--seeds", 1)
    assert ended.returncode == 1
    assert said in ended.stderr
    failed, other = (read_outcome(tmp_path / "sweep" / name / "seed_0") for name in ("wild", "base"))
    assert failed is not None
    assert (failed.status, failed.error, failed.step) == ("failed", error, 0)
    assert other is not None
    assert other.status == "finished"


def waiting_for(file: str, train: Train) -> Train:
    """Waits for the file, then calls `train`."""

    def wait(config: TrainConfig, **options: Any) -> TrainResult:
        while not Path(file).exists():
            time.sleep(0.05)
        return train(config, **options)

    return wait


def child_with(train: str) -> str:
    """Returns code that runs scripts/ablate.py with an expression in place of `train`."""
    return f"""
import os, runpy, signal, sys
from mlm_jax.sweep import runner
from tests.sweep import test_runner as here

runner.train = {train}
sys.argv[0] = "scripts/ablate.py"
runpy.run_path("scripts/ablate.py", run_name="__main__")
"""


@pytest.mark.slow
def test_a_trial_that_kills_two_processes_fails_and_the_others_continue(
    pretence: None, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, {"wild": with_rate(1.0), "base": short()})
    arguments = (sweep, "--output", tmp_path / "sweep", "--seeds", 1)
    killed = child_with("here.with_a_wild_trial(lambda: os.kill(os.getpid(), signal.SIGKILL))")
    for _ in range(2):
        ended = run_python(killed, *arguments)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    ended = run_script("ablate", *arguments)
    assert ended.returncode == 1
    told = "wild/seed_0 failed: 2 processes were killed after step 0, perhaps because memory ran out\n"
    assert told in ended.stderr
    other = read_outcome(tmp_path / "sweep" / "base" / "seed_0")
    assert other is not None
    assert other.status == "finished"
    # A process that finds it failed retries it.
    again = run_script("ablate", *arguments)
    assert again.returncode == 0, again.stderr
    assert list((tmp_path / "sweep").glob("**/lock")) == []


def ended_at_a_step(at: int, number: signal.Signals, train: Train = train) -> Train:
    """Replaces `train`: sends the signal to the process at step `at`; only the first trial is trained."""

    def ended(config: TrainConfig, on_step: Callable[[int], None], **options: Any) -> TrainResult:
        def step(step: int) -> None:
            on_step(step)
            if step == at:
                os.kill(os.getpid(), number)

        if Path(config.output_dir).parent.name != "base":
            return pretend_to_train(config, on_step=on_step, **options)
        return train(config, on_step=step, **options)

    return ended


@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(signal.SIGTERM, 12, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 40, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 12, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_sweep_resumes(
    no_report: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int
) -> None:
    """At step 40 only the last evaluation is left to do."""
    sweep = write_sweep(tmp_path, {"base": config_of(tmp_path), "low": with_rate(1e-3)})
    folder = tmp_path / "sweep"
    arguments = (sweep, "--output", folder, "--seeds", 1)
    if number == signal.SIGKILL:
        ended = run_python(child_with("here.ended_at_a_step(12, signal.SIGKILL)"), *arguments)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    else:
        monkeypatch.setattr(runner, "train", ended_at_a_step(step, number))
        ended = run_script("ablate", *arguments)
        assert ended.returncode == 75, ended.stderr
        assert ended.stderr.endswith(f"{folder}: stopped by SIGTERM; rerun the same command to resume\n")
    assert read_outcome(folder / "base" / "seed_0") is None
    assert not (folder / "low").exists()
    monkeypatch.setattr(runner, "train", ended_at_a_step(0, number))
    again = run_script("ablate", *arguments)
    assert again.returncode == 0, again.stderr
    assert_same_end(folder / "base" / "seed_0", uninterrupted())
    assert read_outcome(folder / "low" / "seed_0") is not None


def begin_as_a_process_does(folder: Path, sweep: Path, num_seeds: int) -> None:
    planned = load_sweep(sweep)
    sources = {name: open_run_data(config.data) for name, config in planned.trials.items()}
    data = {
        name: {"training": s.fingerprint, "evaluation": f"{s.evaluation_fingerprint}"}
        for name, s in sources.items()
    }
    begin(folder, planned, num_seeds, data)


@pytest.mark.slow
def test_processes_share_a_folder_without_training_a_run_twice(
    pretence: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = {"a": with_rate(1e-2), "b": with_rate(1e-3), "c": with_rate(1.0)}
    sweep, folder = write_sweep(tmp_path, trials), tmp_path / "sweep"
    begin_as_a_process_does(folder, sweep, 2)
    both_are_there = tmp_path / "go"
    code = child_with(f"here.waiting_for({str(both_are_there)!r}, here.failing(OSError('no room')))")
    command = [sys.executable, "-c", code, str(sweep), "--output", str(folder), "--seeds", "2"]
    # Until both have started, this process owns the first run, and they wait before they train the second.
    with lock_folder(folder / "a" / "seed_0") as lock:
        assert lock.acquired
        children = [
            subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        first = [child.stderr.readline() for child in children]
        assert first == [f"[1/6] a/seed_0 is being trained by {lock.owner}\n"] * 2
        both_are_there.touch()
    told = [child.stderr.read() for child in children]
    for child in children:
        child.wait(timeout=300)
    # A failing run is also tried by only one of them.
    assert {child.returncode for child in children} <= {0, 1}, told
    assert [child.returncode for child in children].count(1) >= 1, told
    trained = Counter(
        line.split()[1].rstrip(":") for text in told for line in text.splitlines() if ": sweep " in line
    )
    runs = {f"{name}/seed_{seed}" for name in "abc" for seed in (0, 1)} - {"a/seed_0"}
    assert trained == dict.fromkeys(runs, 1)
    assert all(read_outcome(folder / run) is not None for run in trained)
    # The next process trains the run that was left to this one.
    monkeypatch.setattr(runner, "train", failing(OSError("still")))
    assert run_script("ablate", sweep, "--output", folder, "--seeds", 2).returncode == 1
    assert read_outcome(folder / "a" / "seed_0") is not None


def test_a_run_in_another_process_is_skipped(pretence: None, tmp_path: Path) -> None:
    sweep, folder = write_sweep(tmp_path, {"a": short(), "b": with_rate(1e-3)}), tmp_path / "sweep"
    begin_as_a_process_does(folder, sweep, 1)
    with held_by_another_process(folder / "a" / "seed_0") as child:
        ended = run_script("ablate", sweep, "--output", folder, "--seeds", 1)
    assert ended.returncode == 0, ended.stderr
    assert f"[1/2] a/seed_0 is being trained by process {child.pid} on " in ended.stderr
    assert {path.parent.parent.name for path in folder.glob("*/*/outcome.json")} == {"b"}


def test_shares_divide_the_runs(pretence: None, tmp_path: Path) -> None:
    sweep, folder = write_sweep(tmp_path, {"a": short(), "b": with_rate(1e-3)}), tmp_path / "sweep"
    expected: set[str] = set()
    for index, share in enumerate([{"a/seed_0", "b/seed_1"}, {"b/seed_0", "a/seed_1"}]):
        ended = run_script("ablate", sweep, "--output", folder, "--seeds", 2, "--index", index, "--count", 2)
        assert ended.returncode == 0, ended.stderr
        expected |= share
        assert {str(path.parent.relative_to(folder)) for path in folder.glob("*/*/outcome.json")} == expected


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"base": short(), "low": with_rate(1e-3)})
    ended = run_script("ablate", sweep, "--output", tmp_path / "sweep", "--seeds", 2, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        "base: the baseline",
        "    seed 0: 6 steps, to be trained",
        "    seed 1: 6 steps, to be trained",
        "low: optimizer.learning_rate = 0.001",
        "    seed 0: 6 steps, to be trained",
        "    seed 1: 6 steps, to be trained",
    ]
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": replace(short().data, path="nowhere")}, "trial 'b': nowhere"),
        ({"init_from": "nowhere/run"}, "trial 'b': nowhere/run"),
        ({"mesh": MeshConfig(data=3)}, "trial 'b': mesh: data 3"),
        ({"model": replace(MODEL, vocabulary_size=20)}, "trial 'b': model.vocabulary_size = 20: must be"),
    ],
)
def test_errors_in_a_trial_are_reported_before_a_folder_is_created(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    ended = run_script(
        "ablate", write_sweep(tmp_path, {"a": short(), "b": short(**change)}), "--output", tmp_path / "sweep"
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()
