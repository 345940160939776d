"""Runs a sweep: any number of processes share the runs, and each run is trained once, by one process."""

import time
import traceback
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax

from mlm_jax.errors import InputError, RunError
from mlm_jax.files.folder_lock import lock_folder
from mlm_jax.run.machine import this_machine
from mlm_jax.run.reporting import say
from mlm_jax.run.signals import StopRequest
from mlm_jax.run.trainer import check_run, train
from mlm_jax.sweep.folder import Fingerprints, begin, check
from mlm_jax.sweep.plan import Run, Sweep, describe_trial, runs_of, share_of
from mlm_jax.sweep.progress import Progress, last_step
from mlm_jax.sweep.records import Outcome, forget_outcome, read_outcome, write_outcome

# Number of processes that may die in the same run without logging a step before the run counts as failed.
_MAX_DEATHS = 2
_VERSIONS = ("mlm_jax", "jax", "jaxlib", "flax", "optax")

Ending = Literal["finished", "failed", "elsewhere", "stopped"]
"""Outcome of a run in this process; `elsewhere` if another process trains it."""


@dataclass(frozen=True)
class SweepResult:
    """Result of `run_sweep`: the ending of each run of the job, in the order of the sweep."""

    runs: dict[str, Ending]
    signal: str | None
    """Name of the signal that stopped the sweep, if any."""

    def of(self, ending: Ending) -> list[str]:
        """Returns the names of the runs with this ending."""
        return [name for name, ended in self.runs.items() if ended == ending]


def run_sweep(
    sweep: Sweep, folder: Path, *, num_seeds: int = 1, index: int = 0, count: int = 1, command: str = ""
) -> SweepResult:
    """Trains every unfinished run of job `index` of `count`, each in a run folder below `folder`.

    A run that another process is training is left to it, so any number of processes may have the same index. A run that
    failed before is retried from its newest checkpoint. If a run fails, the error is printed and recorded, and the
    sweep continues with the next run. A signal stops the current run, which is saved, and the sweep. Runs that differ
    only in seed, learning rate, replacement rates, or the masking rate at the same `mask_selection_length` share a
    compiled program through `compilation_cache_dir`.

    Raises:
        InputError: the folder contains other files, `index` or `count` is out of range, or a trial cannot be trained.
            Nothing is trained, and no folder is created.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"a job of {jax.process_count()} processes: must be one process, because one process trains each run"
        )
    runs = runs_of(sweep, folder, num_seeds)
    share = share_of(runs, index, count)
    begin(folder, sweep, num_seeds, _check_trials(sweep))
    before = {run.name: read_outcome(folder / run.name) for run in share}
    ended: dict[str, Ending] = {}
    with StopRequest() as stop, Progress(runs, len(share)) as progress:
        for run in share:
            if stop.name is not None:
                break
            ended[run.name] = _run(run, before[run.name], stop, progress, command)
    return SweepResult(ended, stop.name)


def plan_of(sweep: Sweep, folder: Path, *, num_seeds: int, index: int = 0, count: int = 1) -> str:
    """Describes what `run_sweep` would do: the trials, their differences, and their runs. Raises the same errors."""
    share = share_of(runs_of(sweep, folder, num_seeds), index, count)
    check(folder, sweep, _check_trials(sweep))
    lines = []
    for trial, config in sweep.trials.items():
        lines.append(f"{trial}: {describe_trial(sweep, trial)}")
        for run in (run for run in share if run.trial == trial):
            outcome = read_outcome(folder / run.name)
            state = outcome.status if outcome else "to be trained"
            why = f": {outcome.error}" if outcome and outcome.error else ""
            lines.append(f"    seed {run.seed}: {config.num_steps:,} steps, {state}{why}")
    return "\n".join(lines)


def _check_trials(sweep: Sweep) -> Fingerprints:
    """Returns the fingerprints of each trial's data. Raises InputError if a trial cannot be trained."""
    data = {}
    for name, config in sweep.trials.items():
        try:
            sources = check_run(config)
        except InputError as error:
            raise InputError(f"{sweep.source}: trial {name!r}: {error}") from error
        data[name] = {"training": sources.fingerprint, "evaluation": f"{sources.evaluation_fingerprint}"}
    return data


def _run(run: Run, before: Outcome | None, stop: StopRequest, progress: Progress, command: str) -> Ending:
    """Trains a run unless it is finished or in another process. `before` is its outcome at the start of the sweep."""
    folder = Path(run.config.output_dir)
    with lock_folder(folder) as lock:
        if not lock.acquired:
            progress.leave(run, f"is being trained by {lock.owner or 'another process'}")
            return "elsewhere"
        outcome = read_outcome(folder)
        if outcome is not None and outcome.status == "finished":
            progress.leave(run, "is finished")
            return "finished"
        if outcome is not None and outcome != before:
            progress.leave(run, f"failed in another process: {outcome.error}")
            return "failed"
        forget_outcome(folder)
        progress.begin(run)
        step, error = last_step(folder), None
        start = time.monotonic()
        if [owner.step for owner in lock.died].count(step) < _MAX_DEATHS:
            lock.note_step(step)
            error, finished = _train(run, stop, progress)
            if error is None and not finished:
                return "stopped"
        else:
            error = f"{_MAX_DEATHS} processes were killed after step {step:,}, perhaps because memory ran out"
        seconds = time.monotonic() - start if progress.took_steps else None
        progress.end(run)
        write_outcome(folder, _outcome(folder, error, seconds, command))
        if error is not None:
            say(f"{run.name} failed: {error}")
        # The next trial finds reusable programs on disk.
        jax.clear_caches()
        return "finished" if error is None else "failed"


def _train(run: Run, stop: StopRequest, progress: Progress) -> tuple[str | None, bool]:
    """Returns the error of the run, if it failed, and True if it has taken all its steps."""
    try:
        return None, train(run.config, on_step=progress.step, stop=stop).finished
    except (InputError, RunError, OSError) as error:
        return f"{error}", False
    except Exception as bug:
        # The traceback must not be lost, and a bug in one trial must not stop the others.
        traceback.print_exc()
        return f"{type(bug).__name__}: {bug}", False


def _outcome(folder: Path, error: str | None, seconds: float | None, command: str) -> Outcome:
    machine = this_machine()
    return Outcome(
        status="finished" if error is None else "failed",
        error=None if error is None else " ".join(error.split()),
        step=last_step(folder),
        seconds=seconds,
        command=command,
        machine={
            "date": machine.date,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processor": machine.processor,
            "cores": machine.cores,
        },
        versions={"python": machine.python} | {name: version(name) for name in _VERSIONS},
    )
