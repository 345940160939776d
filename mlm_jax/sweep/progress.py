"""How far a sweep has come, whoever trains its runs."""

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
    """The last that is recorded; 0 where none is."""
    records = read_records(run_folder / METRICS_FILE)
    return records[-1]["step"] if records else 0


class Progress:
    """A bar over the steps of all runs on a terminal, and a line a run everywhere.

    What other processes have done is looked up in the folders whenever a run begins or is left to them. The time left
    is that of the steps still to be taken, at the rate of all processes together since this one began.
    """

    def __init__(self, runs: Sequence[Run], share_size: int) -> None:
        """Of all `runs` of a sweep, of which this process is to see to `share_size`."""
        self._runs, self._share_size, self._place = runs, share_size, 0
        self._total = sum(run.config.num_steps for run in runs)
        self._steps = {run.name: _steps_done(run) for run in runs}
        # What was there before, and took none of the time since.
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
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the bar."""
        self._bar.close()

    @property
    def _done(self) -> int:
        return sum(self._steps.values())

    def leave(self, run: Run, why: str) -> None:
        """A run that takes nothing of this process."""
        self._place += 1
        self._look()
        say(f"[{self._place}/{self._share_size}] {run.name} {why}")

    def begin(self, run: Run) -> None:
        """A run that is trained from here on, until `end`."""
        self._place += 1
        self._current, self._took_steps = run.name, False
        # Before the others are looked at: one that had failed was counted as done.
        self._set_found(last_step(Path(run.config.output_dir)))
        self._look()
        taken = self._done - self._found
        left = "the time left is not known yet"
        if taken > 0:
            seconds = (self._total - self._done) * (time.monotonic() - self._start) / taken
            left = f"about {tqdm.format_interval(seconds)} left"
        done = self._done / self._total
        say(f"[{self._place}/{self._share_size}] {run.name}: {done:.0%} of the sweep is done, {left}")

    def step(self, step: int) -> None:
        """The run under way is at `step`."""
        if not self._took_steps:
            self._set_found(step - 1)
        self._took_steps = True
        self._steps[self._current] = step
        self._show()

    @property
    def took_steps(self) -> bool:
        """Whether the run under way had any left to take."""
        return self._took_steps

    def end(self, run: Run) -> None:
        """The run under way has ended, maybe early."""
        self._found += run.config.num_steps - self._steps[run.name]
        self._steps[run.name] = run.config.num_steps
        self._current = ""
        self._show()

    def _look(self) -> None:
        for run in self._runs:
            self._steps[run.name] = _steps_done(run)
        self._show()

    def _set_found(self, steps: int) -> None:
        """The run under way begins after `steps`, whatever was counted of it."""
        self._found += steps - self._steps[self._current]
        self._steps[self._current] = steps

    def _show(self) -> None:
        self._bar.initial = self._found
        self._bar.update(self._done - self._bar.n)


def _steps_done(run: Run) -> int:
    """A run that failed has no more to take."""
    folder = Path(run.config.output_dir)
    return last_step(folder) if read_outcome(folder) is None else run.config.num_steps
