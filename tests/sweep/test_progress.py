"""Progress of a sweep over all its runs, in any process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlm_jax.config import TrainConfig
from mlm_jax.sweep import progress as progresses
from mlm_jax.sweep.plan import Run
from mlm_jax.sweep.progress import Progress
from mlm_jax.sweep.records import Outcome, forget_outcome, write_outcome


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progresses, "time", clock)
    return clock


def runs(folder: Path, count: int = 4) -> list[Run]:
    base = TrainConfig(num_steps=1000)
    return [Run("a", seed, replace(base, output_dir=str(folder / f"seed_{seed}"))) for seed in range(count)]


def log(run: Run, step: int) -> None:
    folder = Path(run.config.output_dir)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")


def end(run: Run, status: str = "finished") -> None:
    outcome = Outcome(status=status, error=None, step=1000, seconds=1.0, command="", machine={}, versions={})
    write_outcome(Path(run.config.output_dir), outcome)


def take(progress: Progress, clock: Clock, first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        clock.now += seconds
        progress.step(step)


def test_the_time_left_uses_the_rate_of_all_processes(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, fourth = all_of = runs(tmp_path)
    # Of another day, and half of the first.
    end(second)
    log(first, 500)
    with Progress(all_of, 2) as progress:
        progress.begin(first)
        # From its checkpoint, which is behind the last line.
        take(progress, clock, 401, 1000, 0.125)
        progress.end(first)
        end(first)
        # Another process has taken 600 of the third's meanwhile.
        log(third, 600)
        progress.begin(fourth)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "[1/2] a/seed_0: sweep 38% done, time left unknown",
        # 1,200 steps in 75 seconds, and 1,400 to be taken.
        "[2/2] a/seed_3: sweep 65% done, about 01:27 left",
    ]


def test_a_run_in_another_process_is_not_done(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = runs(tmp_path, 2)
    with Progress([first, second], 2) as progress:
        progress.leave(first, "is being trained by another process")
        progress.begin(second)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "[1/2] a/seed_0 is being trained by another process",
        "[2/2] a/seed_1: sweep 0% done, time left unknown",
    ]


def test_a_retried_run_takes_its_steps_again(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = runs(tmp_path, 2)
    log(first, 200)
    end(first, "failed")
    with Progress([first, second], 2) as progress:
        forget_outcome(Path(first.config.output_dir))
        progress.begin(first)
        take(progress, clock, 201, 400, 0.125)
        # Fails once more, and the 600 that it does not take are no sign of speed.
        progress.end(first)
        end(first, "failed")
        progress.begin(second)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "[1/2] a/seed_0: sweep 10% done, time left unknown",
        "[2/2] a/seed_1: sweep 50% done, about 02:05 left",
    ]
