"""Running a sweep: each run once, by one of any number of processes, whatever became of the others."""

import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Self

import jax
from tqdm import tqdm

from mlm_jax.errors import InputError, RunError
from mlm_jax.machine import this_machine
from mlm_jax.records import METRICS_FILE, read_records
from mlm_jax.reporting import say
from mlm_jax.signals import StopRequest
from mlm_jax.sweep.claims import claimed
from mlm_jax.sweep.folder import begin, check
from mlm_jax.sweep.plan import Run, Sweep, describe_trial, runs_of, share_of
from mlm_jax.sweep.records import Outcome, forget_outcome, read_outcome, write_outcome
from mlm_jax.trainer import check_run, train

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
    share = share_of(runs_of(sweep, folder, num_seeds), index, count)
    check(folder, sweep)
    _check_trials(sweep)
    begin(folder, sweep, num_seeds)
    before = {run.name: read_outcome(folder / run.name) for run in share}
    ended: dict[str, Ending] = {}
    with StopRequest() as stop, _Progress(share) as progress:
        for run in share:
            if stop.name is not None:
                break
            ended[run.name] = _run(run, before[run.name], stop, progress, command)
    return SweepResult(ended, stop.name)


def plan_of(sweep: Sweep, folder: Path, *, num_seeds: int, index: int = 0, count: int = 1) -> str:
    """What `run_sweep` would do, as text: a line a trial with what differs, and its runs. Raises what it raises."""
    share = share_of(runs_of(sweep, folder, num_seeds), index, count)
    check(folder, sweep)
    _check_trials(sweep)
    lines = []
    for trial, config in sweep.trials.items():
        lines.append(f"{trial}: {describe_trial(sweep, trial)}")
        for run in (run for run in share if run.trial == trial):
            outcome = read_outcome(folder / run.name)
            state = outcome.status if outcome else "to be trained"
            why = f": {outcome.error}" if outcome and outcome.error else ""
            lines.append(f"    seed {run.seed}: {config.num_steps:,} steps, {state}{why}")
    return "\n".join(lines)


def _check_trials(sweep: Sweep) -> None:
    """InputError where a trial could not be trained."""
    for name, config in sweep.trials.items():
        try:
            check_run(config)
        except InputError as error:
            raise InputError(f"{sweep.source}: trial {name!r}: {error}") from error


def _run(run: Run, before: Outcome | None, stop: StopRequest, progress: "_Progress", command: str) -> Ending:
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
        error: str | None = None
        start = time.monotonic()
        try:
            if not train(run.config, on_step=progress.step, stop=stop).finished:
                return "stopped"
        except (InputError, RunError, OSError) as refused:
            error = f"{refused}"
        except Exception as bug:
            # What it is must not be lost, and must not cost the other runs their night.
            traceback.print_exc()
            error = f"{type(bug).__name__}: {bug}"
        seconds = time.monotonic() - start if progress.took_steps else None
        progress.end(run)
        write_outcome(folder, _outcome(folder, error, seconds, command))
        if error is not None:
            say(f"{run.name} failed: {error}")
        # Of a trial's programs nothing is of use to the next one that does not lie on the disk.
        jax.clear_caches()
        return "finished" if error is None else "failed"


def _outcome(folder: Path, error: str | None, seconds: float | None, command: str) -> Outcome:
    records = read_records(folder / METRICS_FILE)
    machine = this_machine()
    return Outcome(
        status="finished" if error is None else "failed",
        error=None if error is None else " ".join(error.split()),
        step=records[-1]["step"] if records else 0,
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


class _Progress:
    """A bar over the steps of all runs on a terminal, and a line a run everywhere."""

    def __init__(self, share: Sequence[Run]) -> None:
        self._share = share
        self._total = sum(run.config.num_steps for run in share)
        self._bar = tqdm(
            total=self._total, desc="sweep", unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )
        self._place = 0
        self._done = 0
        self._trained, self._seconds = 0, 0.0
        self._step, self._at = 0, 0.0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the bar."""
        self._bar.close()

    def leave(self, run: Run, why: str) -> None:
        """A run that takes nothing of this process."""
        self._place += 1
        self._add(run.config.num_steps)
        say(f"[{self._place}/{len(self._share)}] {run.name} {why}")

    def begin(self, run: Run) -> None:
        """A run that is trained from here on, until `end`."""
        self._place += 1
        left = "the time left is not known yet"
        if self._trained:
            seconds = (self._total - self._done) * self._seconds / self._trained
            left = f"about {tqdm.format_interval(seconds)} left"
        done = self._done / self._total
        say(f"[{self._place}/{len(self._share)}] {run.name}: {done:.0%} of the sweep is done, {left}")
        self._step, self._at = 0, time.monotonic()

    def step(self, step: int) -> None:
        """The run under way is at `step`."""
        now = time.monotonic()
        # Those that a run had behind it took no time of this process.
        self._trained += 1
        self._seconds += now - self._at
        self._add(step - self._step)
        self._step, self._at = step, now

    @property
    def took_steps(self) -> bool:
        """Whether the run under way had any left to take."""
        return self._step > 0

    def end(self, run: Run) -> None:
        """The run under way has ended, maybe early."""
        self._add(run.config.num_steps - self._step)

    def _add(self, steps: int) -> None:
        self._done += steps
        self._bar.update(steps)
