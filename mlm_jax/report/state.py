"""What a sweep has left in its folder: its plan, and of each run its outcome, its config and its records.

SWEEP/sweep.json                    name, source, description, baseline, seeds and the settings of each trial
SWEEP/TRIAL/seed_S/                 a run folder
SWEEP/TRIAL/seed_S/outcome.json     how the run ended; absent as long as it has not
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.records import EVALUATIONS_FILE, METRICS_FILE, read_records
from mlm_jax.settings import flatten
from mlm_jax.sweep.folder import OUTCOME_FILE, SWEEP_FILE

Status = Literal["finished", "failed", "started", "not started"]

# Where a run writes to and its seed are not what a trial is about.
_NOT_OF_THE_TRIAL = ("output_dir", "seed")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One trial with one seed, as far as it has come."""

    trial: str
    seed: int
    status: Status
    """`"started"`: it has written records and no outcome, so that it runs or was killed."""
    outcome: Mapping[str, Any] = field(repr=False)
    """outcome.json; empty where there is none."""
    config: Mapping[str, Any] = field(repr=False)
    training: list[dict[str, Any]] = field(repr=False)
    """The lines of metrics.jsonl."""
    evaluations: list[dict[str, Any]] = field(repr=False)
    """The lines of eval.jsonl."""

    @property
    def name(self) -> str:
        """Its folder within the sweep's."""
        return f"{self.trial}/seed_{self.seed}"

    @property
    def step(self) -> int:
        """The last step that is known of."""
        logged = [record["step"] for record in (*self.training[-1:], *self.evaluations[-1:])]
        return max([self.outcome.get("step", 0), *logged])

    @cached_property
    def result(self) -> Mapping[str, Any] | None:
        """The last evaluation at the last step of a finished run, if it has one with a finite loss."""
        if self.status != "finished" or not self.evaluations:
            return None
        last = self.evaluations[-1]
        return last if last["step"] == self.outcome["step"] and last["mlm_loss"] is not None else None

    @property
    def why_left_out(self) -> str | None:
        """Why it has no result, in one line; None where it has one."""
        if self.result is not None:
            return None
        if self.status == "failed":
            return " ".join(["failed:", *str(self.outcome.get("error") or "no reason given").split()])
        if self.status != "finished":
            return "not started" if self.status == "not started" else f"not finished, at step {self.step:,}"
        last = self.evaluations[-1]["step"] if self.evaluations else None
        if last != self.outcome["step"]:
            return f"finished without an evaluation at its last step, {self.outcome['step']:,}"
        return "finished, with an evaluation loss that is not finite"

    @cached_property
    def token_counts(self) -> np.ndarray:
        """float64 [2, lines + 1]: steps, and the real tokens of all steps up to each, from (0, 0).

        A line has the rates of the steps since the one before it. A run that went on in the middle of them has
        those of its last start, which then stand for all.
        """
        steps = np.array([0, *(record["step"] for record in self.training)], dtype=float)
        a_step = [record["real_tokens_per_second"] * record["step_seconds"] for record in self.training]
        # Numbers of tokens, which the division by seconds and the product with them have rounded.
        tokens = np.rint(np.diff(steps) * np.array(a_step))
        return np.stack([steps, np.concatenate([[0.0], np.cumsum(tokens)])])

    @property
    def real_tokens(self) -> int:
        """How many tokens it was trained on, padding not counted."""
        return int(self.token_counts[1, -1])

    @property
    def training_seconds(self) -> float:
        """Of its steps alone: no compilation, evaluation or checkpoint."""
        steps = np.diff([0, *(record["step"] for record in self.training)])
        return float(np.dot(steps, [record["step_seconds"] for record in self.training]))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A configuration and its runs, one a seed."""

    name: str
    settings: Mapping[str, Any] = field(repr=False)
    """By their dotted names, as in `optimizer.learning_rate`."""
    runs: tuple[RunState, ...]

    def results(self, metric: str) -> dict[int, float]:
        """A figure of the last evaluation by seed, of the runs that have one."""
        return {run.seed: run.result[metric] for run in self.runs if run.result is not None}

    @property
    def curve_runs(self) -> tuple[RunState, ...]:
        """The runs that stand for the trial in a curve: those that finished, or where none did, all."""
        return tuple(run for run in self.runs if run.status == "finished") or self.runs


@dataclass(frozen=True, kw_only=True)
class SweepState:
    """Trials to compare with one of them, each with the same seeds."""

    name: str
    source: str
    """The Python file that it is made by."""
    description: str
    baseline: str
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...]

    @property
    def runs(self) -> list[RunState]:
        """Of all trials, in order."""
        return [run for trial in self.trials for run in trial.runs]

    @property
    def baseline_trial(self) -> Trial:
        """The one that the others are compared with."""
        return next(trial for trial in self.trials if trial.name == self.baseline)

    @cached_property
    def varied_settings(self) -> list[str]:
        """The names of the settings that are not the same in all trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.settings)
        first = self.trials[0].settings
        return [
            name
            for name in names
            if any(name not in t.settings or t.settings[name] != first.get(name) for t in self.trials)
        ]

    def changes(self, trial: Trial) -> dict[str, Any]:
        """The settings in which a trial differs from the baseline, with its values."""
        before = self.baseline_trial.settings
        return {
            name: trial.settings.get(name)
            for name in self.varied_settings
            if trial.settings.get(name) != before.get(name)
        }


def read_sweep(folder: Path) -> SweepState:
    """All that a sweep's folder holds so far.

    A half-written last line of metrics.jsonl or eval.jsonl, as a killed process leaves it, is left out.

    Raises:
        InputError: sweep.json is missing or damaged, or an outcome.json or config.json is damaged.
    """
    file = folder / SWEEP_FILE
    if not file.is_file():
        raise InputError(f"{folder}: not the folder of a sweep: no {SWEEP_FILE}")
    plan = _read_object(file)
    wanted = {"name": str, "source": str, "description": str, "baseline": str, "seeds": list, "trials": dict}
    for key, kind in wanted.items():
        if not isinstance(plan.get(key), kind):
            raise InputError(f"{file}: {key} = {plan.get(key)!r}: must be a JSON {_JSON_NAMES[kind]}")
    if plan["baseline"] not in plan["trials"]:
        raise InputError(
            f"{file}: baseline = {plan['baseline']!r}: must be one of {', '.join(plan['trials'])}"
        )
    if not plan["seeds"] or not all(type(seed) is int for seed in plan["seeds"]):
        raise InputError(f"{file}: seeds = {plan['seeds']!r}: must be whole numbers, at least one")
    if not all(isinstance(settings, dict) for settings in plan["trials"].values()):
        raise InputError(f"{file}: trials: each must be a JSON object of settings")
    trials = tuple(_trial(folder, name, settings, plan["seeds"]) for name, settings in plan["trials"].items())
    named = {key: plan[key] for key in ("name", "source", "description", "baseline")}
    return SweepState(**named, seeds=tuple(plan["seeds"]), trials=trials)


_JSON_NAMES = {str: "string", list: "array", dict: "object"}


def _trial(folder: Path, name: str, settings: dict[str, Any], seeds: list[int]) -> Trial:
    runs = tuple(_run(folder / name / f"seed_{seed}", name, seed, settings) for seed in seeds)
    flat = {key: value for key, value in flatten(settings).items() if key not in _NOT_OF_THE_TRIAL}
    return Trial(name=name, settings=flat, runs=runs)


def _run(folder: Path, trial: str, seed: int, settings: dict[str, Any]) -> RunState:
    config, outcome = folder / "config.json", folder / OUTCOME_FILE
    training, evaluations = (read_records(folder / name) for name in (METRICS_FILE, EVALUATIONS_FILE))
    ended = _read_outcome(outcome) if outcome.is_file() else {}
    return RunState(
        trial=trial,
        seed=seed,
        status=ended["status"] if ended else "started" if training or evaluations else "not started",
        outcome=ended,
        # What it would be run with, as long as it has not said so itself.
        config=_read_object(config) if config.is_file() else settings | {"seed": seed},
        training=training,
        evaluations=evaluations,
    )


def _read_outcome(file: Path) -> dict[str, Any]:
    outcome = _read_object(file)
    ended = outcome.get("status") in ("finished", "failed")
    timed = outcome.get("seconds", "") is None or type(outcome.get("seconds")) in (int, float)
    if not ended or type(outcome.get("step")) is not int or not timed:
        raise InputError(
            f"{file}: must hold a status, 'finished' or 'failed', a step and seconds; delete it to run this one again"
        )
    return outcome


def _read_object(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(read, dict):
        raise InputError(f"{file}: must be a JSON object")
    return read
