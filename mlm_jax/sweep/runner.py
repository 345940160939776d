"""Running a sweep: each run once, by one of any number of processes, whatever became of the others."""

import time
import traceback
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import jax

from mlm_jax.errors import InputError, RunError
from mlm_jax.run.machine import this_machine
from mlm_jax.run.reporting import say
from mlm_jax.run.signals import StopRequest
from mlm_jax.run.trainer import check_run, train
from mlm_jax.sweep.claims import claimed
from mlm_jax.sweep.folder import Fingerprints, begin, check
from mlm_jax.sweep.plan import Run, Sweep, describe_trial, runs_of, share_of
from mlm_jax.sweep.progress import Progress, last_step
from mlm_jax.sweep.records import (
    Outcome,
    count_deaths,
    forget_outcome,
    forget_starts,
    note_start,
    read_outcome,
    write_outcome,
)

# Of one run, with no step recorded between them, before it is given up and the others go on.
_MOST_DEATHS = 2
_VERSIONS = ("mlm_jax", "jax", "jaxlib", "flax", "optax")

Ending = Literal["finished", "failed", "elsewhere", "stopped"]
"""Of a run: `elsewhere` is that another process has it."""


@dataclass(frozen=True)
class SweepResult:
    """How a call of `run_sweep` ended: the runs of its share by how they did, in the order of the sweep."""

    runs: dict[str, Ending]
    signal: str | None
    """What ended it early, if anything did."""

    def of(self, ending: Ending) -> list[str]:
        """The names of the runs that ended so."""
        return [name for name, ended in self.runs.items() if ended == ending]


def run_sweep(
    sweep: Sweep, folder: Path, *, num_seeds: int = 1, index: int = 0, count: int = 1, command: str = ""
) -> SweepResult:
    """Train every run of the share `index` of `count` that is not finished, each in a run folder below `folder`.

    A run that another process trains at the moment is left to it, so that any number of processes may be given the same
    share. One that had failed when this began is tried again, from its newest checkpoint. What a run fails of is told
    and recorded, and the others go on; a signal stops the run under way, which is saved, and with it the sweep. Runs
    that differ in seed, learning rate or how masked positions are replaced alone, or in the masking rate with one
    `mask_selection_length`, are one program: it is compiled by the first of them, and lies in `compilation_cache_dir`
    for the others.

    Raises:
        InputError: before anything is trained and a folder made: the folder is of something else, there is no such
            share, or a trial cannot be trained; says which.
    """
    if jax.process_count() > 1:
        raise InputError(
            f"a job of {jax.process_count()} processes: must be one, because each trains a run alone"
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
    """What `run_sweep` would do, as text: a line a trial with what differs, and its runs. Raises what it raises."""
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
    """What each trial's data are; InputError where one could not be trained."""
    data = {}
    for name, config in sweep.trials.items():
        try:
            sources = check_run(config)
        except InputError as error:
            raise InputError(f"{sweep.source}: trial {name!r}: {error}") from error
        data[name] = {"training": sources.fingerprint, "evaluation": f"{sources.evaluation_fingerprint}"}
    return data


def _run(run: Run, before: Outcome | None, stop: StopRequest, progress: Progress, command: str) -> Ending:
    """`before` is how it had ended when the sweep began."""
    folder = Path(run.config.output_dir)
    with claimed(folder) as mine:
        if not mine:
            progress.leave(run, "is being trained by another process")
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
        if count_deaths(folder, step) < _MOST_DEATHS:
            note_start(folder, step)
            error, finished = _train(run, stop, progress)
            if error is None and not finished:
                forget_starts(folder)
                return "stopped"
        else:
            error = f"{_MOST_DEATHS} processes were killed after step {step:,}, maybe for want of memory"
        forget_starts(folder)
        seconds = time.monotonic() - start if progress.took_steps else None
        progress.end(run)
        write_outcome(folder, _outcome(folder, error, seconds, command))
        if error is not None:
            say(f"{run.name} failed: {error}")
        # Of a trial's programs nothing is of use to the next one that does not lie on the disk.
        jax.clear_caches()
        return "finished" if error is None else "failed"


def _train(run: Run, stop: StopRequest, progress: Progress) -> tuple[str | None, bool]:
    """What the run failed of, and whether it has all its steps."""
    try:
        return None, train(run.config, on_step=progress.step, stop=stop).finished
    except (InputError, RunError, OSError) as refused:
        return f"{refused}", False
    except Exception as bug:
        # What it is must not be lost, and must not cost the other runs their night.
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
