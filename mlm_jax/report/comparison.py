"""How far a trial's results are from the baseline's, and what that allows to be said.

A seed changes the initial weights, the order of the data, the masks and dropout. The same seed gives the baseline and
a trial as much of these in common as they can have, so results are compared seed by seed (a paired t interval,
Student 1908): what a seed does to both cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10, sqrt

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
_FEWEST_DECIMALS, _MOST_DECIMALS = 3, 9


@dataclass(frozen=True)
class Summary:
    """The results of several seeds."""

    count: int
    mean: float | None
    """None without a result."""
    deviation: float | None
    """The standard deviation between seeds, of the sample (n - 1); None for fewer than two."""


@dataclass(frozen=True)
class Difference:
    """A trial's results minus the baseline's, over the seeds that both have; in nats, so lower is better."""

    values: tuple[float, ...]
    """One a pair, in the order of the seeds."""
    mean: float | None
    """None without a pair."""
    low: float | None
    """The 95 % interval of the mean; None where there is none: see `paired_difference`."""
    high: float | None

    @property
    def is_claim(self) -> bool:
        """Whether there is an interval and it excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def verdict(self) -> str:
        """What may be said, in words; a difference is claimed only where the interval excludes zero."""
        if self.mean is None:
            return "no seed in common with the baseline"
        if self.low is None:
            if len(self.values) == 1:
                return "one pair: no interval, no verdict"
            same = "identical" if self.mean == 0 else "the same difference"
            return f"{same} with every seed: no interval, no verdict"
        if not self.is_claim:
            return f"no difference seen ({self.interval()})"
        return f"{abs(self.mean):.{self._decimals}f} nats {'lower' if self.mean < 0 else 'higher'}"

    def shown_mean(self) -> str:
        """With its sign; a dash where there is none."""
        return "–" if self.mean is None else _signed(self.mean, self._decimals)

    def interval(self) -> str:
        """As in `−0.010 … +0.022`; a dash where there is none."""
        if self.low is None or self.high is None:
            return "–"
        return f"{_signed(self.low, self._decimals)} … {_signed(self.high, self._decimals)}"

    @property
    def _decimals(self) -> int:
        """As many as the interval deserves: its half width with two digits."""
        if self.low is None or self.high is None:
            return _FEWEST_DECIMALS
        return min(max(_FEWEST_DECIMALS, 1 - floor(log10((self.high - self.low) / 2))), _MOST_DECIMALS)


def summarise(values: Sequence[float]) -> Summary:
    """Their mean and the standard deviation of the sample."""
    count = len(values)
    return Summary(
        count=count,
        mean=float(np.mean(values)) if count else None,
        deviation=float(np.std(values, ddof=1)) if count > 1 else None,
    )


def paired_difference(baseline: Mapping[int, float], trial: Mapping[int, float]) -> Difference:
    """The trial's results minus the baseline's, seed by seed, with the paired 95 % t interval of their mean.

    There is no interval for one pair, and none where all differences are equal up to rounding: runs that the seed does
    not change are one measurement, however often it is made, and n - 1 times nothing is no estimate of its spread.

    Args:
        baseline: results by seed.
        trial: results by seed; only the seeds that both have are used.
    """
    values = np.array([trial[seed] - baseline[seed] for seed in sorted(baseline.keys() & trial.keys())])
    if not len(values):
        return Difference((), None, None, None)
    mean = float(values.mean())
    rounding = 8 * np.finfo(float).eps * max(abs(result) for result in (*baseline.values(), *trial.values()))
    if len(values) == 1 or np.ptp(values) <= rounding:
        return Difference(tuple(values.tolist()), mean, None, None)
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half_width = quantile * float(values.std(ddof=1)) / sqrt(len(values))
    return Difference(tuple(values.tolist()), mean, mean - half_width, mean + half_width)


def _signed(value: float, decimals: int) -> str:
    shown = f"{value:+.{decimals}f}"
    return "0." + "0" * decimals if float(shown) == 0 else shown.replace("-", "−")
