"""Reads the folder of a sweep: its plan, and the outcome, config and records of each run.

SWEEP/sweep.json                    name, source, description, baseline, seeds and the settings of each trial
SWEEP/TRIAL/seed_S/                 a run folder
SWEEP/TRIAL/seed_S/outcome.json     outcome of the run, written at its end
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlm_jax.config.settings import flatten
from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.run.records import EVALUATIONS_FILE, METRICS_FILE, read_records
from mlm_jax.sweep.records import SWEEP_FILE, Outcome, read_outcome, read_sweep_record

Status = Literal["finished", "failed", "started", "not started"]

# Settings of a run that are not part of its trial.
_NOT_OF_THE_TRIAL = ("output_dir", "seed")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """State of one trial with one seed."""

    trial: str
    seed: int
    outcome: Outcome | None = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    training: list[dict[str, Any]] = field(repr=False)
    """Lines of metrics.jsonl."""
    evaluations: list[dict[str, Any]] = field(repr=False)
    """Lines of eval.jsonl."""

    @property
    def name(self) -> str:
        """Path of the run folder within the folder of the sweep."""
        return f"{self.trial}/seed_{self.seed}"

    @property
    def status(self) -> Status:
        """Status of the run; `"started"` if it has records but no outcome, because it is running or was killed."""
        if self.outcome is not None:
            return self.outcome.status
        return "started" if self.training or self.evaluations else "not started"

    @property
    def step(self) -> int:
        """Last known step."""
        logged = [record["step"] for record in (*self.training[-1:], *self.evaluations[-1:])]
        return max([0 if self.outcome is None else self.outcome.step, *logged])

    @cached_property
    def result(self) -> Mapping[str, Any] | None:
        """Evaluation at the last step of a finished run, or None if there is none with a finite loss."""
        if self.outcome is None or self.outcome.status != "finished" or not self.evaluations:
            return None
        last = self.evaluations[-1]
        return last if last["step"] == self.outcome.step and last["mlm_loss"] is not None else None

    @property
    def why_left_out(self) -> str | None:
        """Reason why the run has no result, on one line; None if it has a result."""
        if self.result is not None:
            return None
        if self.outcome is None:
            return "not started" if self.status == "not started" else f"not finished, at step {self.step:,}"
        if self.outcome.status == "failed":
            return " ".join(["failed:", *(self.outcome.error or "no reason given").split()])
        last = self.evaluations[-1]["step"] if self.evaluations else None
        if last != self.outcome.step:
            return f"finished without an evaluation at its last step, {self.outcome.step:,}"
        return "finished with a non-finite evaluation loss"

    @cached_property
    def token_counts(self) -> np.ndarray:
        """Steps, and the cumulative number of real tokens at each, from (0, 0): float64 [2, lines + 1].

        A line has the rates of the steps since the previous line. The first line after a resume may have rates of fewer
        steps, which are then used for all steps since the previous line.
        """
        steps = np.array([0, *(record["step"] for record in self.training)], dtype=float)
        per_step = [record["real_tokens_per_second"] * record["step_seconds"] for record in self.training]
        # Rounded, because the rates are quotients by the same seconds.
        tokens = np.rint(np.diff(steps) * np.array(per_step))
        return np.stack([steps, np.concatenate([[0.0], np.cumsum(tokens)])])

    @property
    def real_tokens(self) -> int:
        """Number of tokens seen in training, without padding."""
        return int(self.token_counts[1, -1])

    @property
    def training_seconds(self) -> float:
        """Time of the training steps, without compilation, evaluations and checkpoints."""
        steps = np.diff([0, *(record["step"] for record in self.training)])
        return float(np.dot(steps, [record["step_seconds"] for record in self.training]))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A configuration and its runs, one per seed."""

    name: str
    settings: Mapping[str, Any] = field(repr=False)
    """Settings by dotted name, such as `optimizer.learning_rate`."""
    runs: tuple[RunState, ...]

    def results(self, metric: str) -> dict[int, float]:
        """Returns a metric of the runs with a result, by seed."""
        return {run.seed: run.result[metric] for run in self.runs if run.result is not None}

    @property
    def curve_runs(self) -> tuple[RunState, ...]:
        """Runs in the trial's curve: the finished ones, or all if none is finished."""
        return tuple(run for run in self.runs if run.status == "finished") or self.runs


@dataclass(frozen=True, kw_only=True)
class SweepState:
    """A sweep: trials with the same seeds, and a baseline among them."""

    name: str
    source: str
    """Path of its Python file."""
    description: str
    baseline: str
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]

    @property
    def runs(self) -> list[RunState]:
        """Runs of all trials, in order."""
        return [run for trial in self.trials for run in trial.runs]

    @property
    def baseline_trial(self) -> Trial:
        """Trial with which the others are compared."""
        return next(trial for trial in self.trials if trial.name == self.baseline)

    @cached_property
    def varied_settings(self) -> list[str]:
        """Names of the settings that differ between trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.settings)
        first = self.trials[0].settings
        return [
            name
            for name in names
            if any(name not in t.settings or t.settings[name] != first.get(name) for t in self.trials)
        ]

    def changes(self, trial: Trial) -> dict[str, Any]:
        """Returns the settings of a trial that differ from the baseline."""
        before = self.baseline_trial.settings
        return {
            name: trial.settings.get(name)
            for name in self.varied_settings
            if trial.settings.get(name) != before.get(name)
        }


def read_sweep(folder: Path) -> SweepState:
    """Returns the current state of a sweep's folder.

    Ignores a torn last line of metrics.jsonl or eval.jsonl, left by a killed process.

    Raises:
        InputError: sweep.json is missing or damaged, or an outcome.json or config.json is damaged.
    """
    record = read_sweep_record(folder)
    if record is None:
        raise InputError(f"{folder}: not the folder of a sweep: no {SWEEP_FILE}")
    return SweepState(
        name=record.name,
        source=record.source,
        description=record.description,
        baseline=record.baseline,
        seeds=tuple(record.seeds),
        trials=tuple(
            _trial(folder, name, settings, record.seeds) for name, settings in record.trials.items()
        ),
    )


def _trial(folder: Path, name: str, settings: dict[str, Any], seeds: list[int]) -> Trial:
    runs = tuple(_run(folder / name / f"seed_{seed}", name, seed, settings) for seed in seeds)
    flat = {key: value for key, value in flatten(settings).items() if key not in _NOT_OF_THE_TRIAL}
    return Trial(name=name, settings=flat, runs=runs)


def _run(folder: Path, trial: str, seed: int, settings: dict[str, Any]) -> RunState:
    config = folder / "config.json"
    return RunState(
        trial=trial,
        seed=seed,
        outcome=read_outcome(folder),
        # The planned config, until the run has written its own.
        config=read_json_object(config) if config.is_file() else settings | {"seed": seed},
        training=read_records(
            folder / METRICS_FILE, ["loss"], rates=["step_seconds", "real_tokens_per_second"]
        ),
        evaluations=read_records(folder / EVALUATIONS_FILE, ["mlm_loss"]),
    )
