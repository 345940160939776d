import math
from pathlib import Path

import pytest

from mlm_jax.report.results import costs_of, results_of
from mlm_jax.report.state import read_sweep
from tests.report.sweeps import (
    LOSSES,
    evaluation_record,
    step_record,
    write_lines,
    write_outcome,
    write_sweep,
)


def test_a_row_a_trial(tmp_path: Path) -> None:
    results = results_of(read_sweep(write_sweep(tmp_path)))
    assert [result.trial.name for result in results] == list(LOSSES)
    assert [result.is_baseline for result in results] == [True, False, False]
    assert [result.verdict for result in results] == [
        "baseline",
        "0.050 nats lower",
        "no difference seen (−0.107 … +0.100)",
    ]
    baseline, lower, _ = results
    assert (baseline.changes, baseline.difference.mean) == ({}, None)
    assert lower.changes == {"masking.mask_selection_rate": 0.3}
    assert lower.loss.mean == pytest.approx((2.05 + 2.10 + 2.06) / 3)
    assert lower.perplexity == pytest.approx(math.exp((2.05 + 2.10 + 2.06) / 3))
    assert lower.accuracy.mean == pytest.approx(0.6)
    assert lower.real_tokens == 230 * 1000


def test_failed_runs_count_nowhere(tmp_path: Path) -> None:
    losses = {
        "rate_15": {0: 2.1, 1: 2.2, 2: None},
        "rate_30": {0: None, 1: 2.1, 2: 2.0},
        "rate_50": {0: None},
    }
    results = results_of(read_sweep(write_sweep(tmp_path, losses)))
    assert [result.loss.count for result in results] == [2, 2, 0]
    assert [len(result.difference.values) for result in results] == [0, 1, 0]
    assert results[1].verdict == "one pair: no interval, no verdict"
    assert results[2].verdict == "no seed in common with the baseline"
    assert (results[2].loss.mean, results[2].perplexity, results[2].real_tokens) == (None, None, None)


def test_a_loss_beyond_exp_has_a_perplexity_all_the_same(tmp_path: Path) -> None:
    (result,) = results_of(read_sweep(write_sweep(tmp_path, {"diverged": {0: 2.0}})))
    assert result.perplexity == pytest.approx(math.exp(2.0))
    write_lines(
        tmp_path / "diverged" / "seed_0" / "eval.jsonl", [evaluation_record(1000, 0) | {"mlm_loss": 1e4}]
    )
    (result,) = results_of(read_sweep(tmp_path))
    assert result.perplexity == math.inf


def test_costs_are_of_the_runs_that_finished(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, {"rate_15": {0: 2.1, 1: 2.2, 2: None}, "rate_30": {0: None}})
    write_outcome(folder / "rate_15" / "seed_0", 1000, seconds=10.0)
    # At a quarter of the speed of the other.
    slow = step_record(1000, 2.1) | {"real_tokens_per_second": 230 / 0.12, "step_seconds": 0.12}
    write_lines(folder / "rate_15" / "seed_0" / "metrics.jsonl", [slow])
    first, second = costs_of(read_sweep(folder))
    assert (first.count, first.seconds) == (2, pytest.approx((10 + 34.5) / 2))
    assert first.tokens_per_second == pytest.approx(2 * 230_000 / (120 + 30))
    assert (second.count, second.seconds, second.tokens_per_second) == (0, None, None)
