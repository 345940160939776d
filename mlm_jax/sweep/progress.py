"""Progress of a sweep over all processes that train its runs, shown by each process."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tqdm import tqdm

from mlm_jax.run.records import METRICS_FILE, read_records
from mlm_jax.run.reporting import say
from mlm_jax.sweep.plan import Run
from mlm_jax.sweep.records import read_outcome


def last_step(run_folder: Path) -> int:
    """Returns the last logged step of a run, 0 if there is none."""
    records = read_records(run_folder / METRICS_FILE)
    return records[-1]["step"] if records else 0


class Progress:
    """Shows a bar over the steps of all runs, on a terminal, and a line per run.

    The progress of other processes is read from the run folders whenever a run starts or is left to another process.
    The time left is the number of remaining steps over the rate of all processes since this process started.
    """

    def __init__(self, runs: Sequence[Run], share_size: int) -> None:
        """Starts the bar. `runs` are all runs of the sweep, `share_size` is the number of runs of this process."""
        self._runs, self._share_size, self._place = runs, share_size, 0
        self._total = sum(run.config.num_steps for run in runs)
        self._steps = {run.name: _steps_done(run) for run in runs}
        # Number of steps taken before this process started.
        self._found, self._start = self._done, time.monotonic()
        self._current, self._took_steps = "", False
        self._bar = tqdm(
            total=self._total,
            initial=self._found,
            smoothing=0,
            desc="sweep",
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        """Returns the progress itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the bar."""
        self._bar.close()

    @property
    def _done(self) -> int:
        return sum(self._steps.values())

    def leave(self, run: Run, why: str) -> None:
        """Reports a run that this process does not train."""
        self._place += 1
        self._look()
        say(f"[{self._place}/{self._share_size}] {run.name} {why}")

    def begin(self, run: Run) -> None:
        """Reports a run that this process trains until `end`."""
        self._place += 1
        self._current, self._took_steps = run.name, False
        # Before `_look`, because a failed run was counted as done.
        self._set_found(last_step(Path(run.config.output_dir)))
        self._look()
        taken = self._done - self._found
        left = "time left unknown"
        if taken > 0:
            seconds = (self._total - self._done) * (time.monotonic() - self._start) / taken
            left = f"about {tqdm.format_interval(seconds)} left"
        done = self._done / self._total
        say(f"[{self._place}/{self._share_size}] {run.name}: sweep {done:.0%} done, {left}")

    def step(self, step: int) -> None:
        """Updates the bar to `step` of the current run."""
        if not self._took_steps:
            self._set_found(step - 1)
        self._took_steps = True
        self._steps[self._current] = step
        self._show()

    @property
    def took_steps(self) -> bool:
        """True if the current run had steps left to take."""
        return self._took_steps

    def end(self, run: Run) -> None:
        """Counts the current run as done, even if it ended early."""
        self._found += run.config.num_steps - self._steps[run.name]
        self._steps[run.name] = run.config.num_steps
        self._current = ""
        self._show()

    def _look(self) -> None:
        for run in self._runs:
            self._steps[run.name] = _steps_done(run)
        self._show()

    def _set_found(self, steps: int) -> None:
        """Sets the step from which the current run starts."""
        self._found += steps - self._steps[self._current]
        self._steps[self._current] = steps

    def _show(self) -> None:
        self._bar.initial = self._found
        self._bar.update(self._done - self._bar.n)


def _steps_done(run: Run) -> int:
    """Returns the number of steps taken; all steps if the run has ended, even if it failed."""
    folder = Path(run.config.output_dir)
    return last_step(folder) if read_outcome(folder) is None else run.config.num_steps
