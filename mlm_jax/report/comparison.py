"""Difference between the results of a trial and the baseline, and its interpretation.

A seed determines the initial weights, the order of the data, the masks and dropout. With the same seed, a trial and the
baseline share as much of these as possible. Results are therefore compared seed by seed (paired t interval, Student
1908), so that the effect of the seed cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10, sqrt

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
_MIN_DECIMALS, _MAX_DECIMALS = 3, 9


@dataclass(frozen=True)
class Summary:
    """Summary of the results of several seeds."""

    count: int
    mean: float | None
    """None without a result."""
    deviation: float | None
    """Sample standard deviation over the seeds (n - 1); None for fewer than two."""


@dataclass(frozen=True)
class Difference:
    """Results of a trial minus those of the baseline, over their common seeds, in nats; lower is better."""

    values: tuple[float, ...]
    """One value per pair, in the order of the seeds."""
    mean: float | None
    """None without a pair."""
    low: float | None
    """95% interval of the mean; None if there is none, see `paired_difference`."""
    high: float | None

    @property
    def is_claim(self) -> bool:
        """True if there is an interval and it excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def verdict(self) -> str:
        """Returns the conclusion in words; a difference is claimed only if the interval excludes zero."""
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
        """Returns the mean with its sign; a dash if there is none."""
        return "–" if self.mean is None else _signed(self.mean, self._decimals)

    def interval(self) -> str:
        """Returns the interval, such as `−0.010 … +0.022`; a dash if there is none."""
        if self.low is None or self.high is None:
            return "–"
        return f"{_signed(self.low, self._decimals)} … {_signed(self.high, self._decimals)}"

    @property
    def _decimals(self) -> int:
        """Number of decimals that shows two digits of the half width of the interval."""
        if self.low is None or self.high is None:
            return _MIN_DECIMALS
        return min(max(_MIN_DECIMALS, 1 - floor(log10((self.high - self.low) / 2))), _MAX_DECIMALS)


def summarize(values: Sequence[float]) -> Summary:
    """Returns the mean and sample standard deviation of `values`."""
    count = len(values)
    return Summary(
        count=count,
        mean=float(np.mean(values)) if count else None,
        deviation=float(np.std(values, ddof=1)) if count > 1 else None,
    )


def paired_difference(baseline: Mapping[int, float], trial: Mapping[int, float]) -> Difference:
    """Returns the trial's results minus the baseline's, seed by seed, with the paired 95% t interval of their mean.

    There is no interval for a single pair, or if all differences are equal up to rounding, because runs that do not
    depend on the seed are repetitions of one measurement, whose spread cannot be estimated.

    Args:
        baseline: results by seed.
        trial: results by seed; only seeds of both are used.
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
