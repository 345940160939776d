import math

import numpy as np
import pytest
from scipy import stats

from mlm_jax.report.comparison import Difference, paired_difference, summarize


def test_a_summary_by_hand() -> None:
    summary = summarize([2.0, 2.2, 2.4, 3.0])
    assert summary.count == 4
    assert summary.mean == pytest.approx(2.4)
    # Deviations -0.4, -0.2, 0 and 0.6: squares add up to 0.56, over n - 1 = 3.
    assert summary.deviation == pytest.approx(math.sqrt(0.56 / 3))
    assert summarize([2.0]).deviation is None
    assert summarize([]).mean is None


def test_a_paired_interval_by_hand() -> None:
    difference = paired_difference({0: 2.0, 1: 2.1, 2: 2.2}, {0: 1.9, 1: 1.9, 2: 2.1})
    assert difference.values == pytest.approx([-0.1, -0.2, -0.1])
    assert difference.mean == pytest.approx(-0.4 / 3)
    # A standard error of (0.1 / √3) / √3, and Student's t of a two-sided 5 % with 2 degrees of freedom, from his table.
    half_width = 4.3027 * 0.1 / 3
    assert difference.low == pytest.approx(-0.4 / 3 - half_width, abs=1e-5)
    assert difference.high == pytest.approx(-0.4 / 3 + half_width, abs=1e-5)
    assert not difference.is_claim


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_intervals_are_those_of_scipy(count: int) -> None:
    random = np.random.default_rng(count)
    baseline = dict(enumerate(2 + random.normal(0, 0.1, count)))
    trial = {seed: loss + random.normal(-0.02, 0.02) for seed, loss in baseline.items()}
    test = stats.ttest_rel(list(trial.values()), list(baseline.values()))
    interval = test.confidence_interval(0.95)
    difference = paired_difference(baseline, trial)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert difference.is_claim == (test.pvalue < 0.05)


def test_only_seeds_that_both_have_are_paired() -> None:
    baseline, trial = {0: 2.0, 1: 2.5, 3: 2.2}, {3: 2.1, 0: 1.8, 2: 9.0}
    difference = paired_difference(baseline, trial)
    assert difference.values == pytest.approx([-0.2, -0.1])
    assert paired_difference(baseline, {2: 9.0}) == Difference((), None, None, None)
    assert paired_difference(baseline, {2: 9.0}).verdict() == "no seed in common with the baseline"


def test_one_pair_has_no_interval_and_no_verdict() -> None:
    difference = paired_difference({0: 2.0}, {0: 1.0})
    assert (difference.mean, difference.low, difference.high) == (-1.0, None, None)
    assert not difference.is_claim
    assert difference.verdict() == "one pair: no interval, no verdict"
    assert (difference.shown_mean(), difference.interval()) == ("−1.000", "–")


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ({0: 2.1, 1: 2.3, 2: 2.7}, "identical with every seed: no interval, no verdict"),
        # In floating point these differences differ in their last digits.
        ({0: 2.0, 1: 2.2, 2: 2.6}, "the same difference with every seed: no interval, no verdict"),
    ],
)
def test_seeds_that_change_nothing_are_one_measurement(losses: dict[int, float], verdict: str) -> None:
    difference = paired_difference({0: 2.1, 1: 2.3, 2: 2.7}, losses)
    assert difference.low is None
    assert not difference.is_claim
    assert difference.verdict() == verdict


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (Difference((), -0.0312, -0.0410, -0.0214), "0.0312 nats lower"),
        (Difference((), 0.231, 0.1, 0.362), "0.231 nats higher"),
        (Difference((), 0.006, -0.010, 0.022), "no difference seen (−0.010 … +0.022)"),
        # An interval that ends at zero covers it.
        (Difference((), 0.1, 0.0, 0.2), "no difference seen (0.000 … +0.200)"),
        (Difference((), -0.1, -0.2, 0.0), "no difference seen (−0.200 … 0.000)"),
        # As many digits as the interval is wide: never "0.000 nats lower".
        (Difference((), -0.000123, -0.000145, -0.000101), "0.000123 nats lower"),
    ],
)
def test_only_an_interval_without_zero_is_a_claim(difference: Difference, verdict: str) -> None:
    assert difference.verdict() == verdict
    assert difference.is_claim == verdict.endswith(("lower", "higher"))
