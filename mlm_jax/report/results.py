"""Results and costs of each trial, with its difference from the baseline."""

import math
from dataclasses import dataclass, field
from typing import Any

from mlm_jax.report.comparison import Difference, Summary, paired_difference, summarize
from mlm_jax.report.state import SweepState, Trial


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """Reproducible results of a trial, without times."""

    trial: Trial = field(repr=False)
    is_baseline: bool
    changes: dict[str, Any]
    """Settings that differ from the baseline."""
    loss: Summary
    """Evaluation loss in nats."""
    accuracy: Summary
    perplexity: float | None
    """exp of the mean loss: the geometric mean over the seeds. None without a result, infinity on overflow."""
    difference: Difference
    """Difference from the baseline; has no pairs for the baseline itself."""
    real_tokens: float | None
    """Mean over the runs with a result."""

    @property
    def verdict(self) -> str:
        """Conclusion of the comparison with the baseline."""
        return "baseline" if self.is_baseline else self.difference.verdict()


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """Costs of a trial, as means over the finished runs; they vary between reruns."""

    trial: Trial = field(repr=False)
    count: int
    seconds: float | None
    """Wall time since a run's last start, including compilation, evaluations and checkpoints."""
    tokens_per_second: float | None
    """Real tokens per second of training steps."""


def results_of(sweep: SweepState) -> list[TrialResult]:
    """Returns the results of each trial, in the order of the sweep."""
    baseline = sweep.baseline_trial.results("mlm_loss")
    return [_result(sweep, trial, baseline) for trial in sweep.trials]


def costs_of(sweep: SweepState) -> list[TrialCost]:
    """Returns the costs of each trial, in the order of the sweep."""
    return [_cost(trial) for trial in sweep.trials]


def _result(sweep: SweepState, trial: Trial, baseline: dict[int, float]) -> TrialResult:
    losses = trial.results("mlm_loss")
    loss = summarize(list(losses.values()))
    is_baseline = trial.name == sweep.baseline
    tokens = [run.real_tokens for run in trial.runs if run.result is not None]
    return TrialResult(
        trial=trial,
        is_baseline=is_baseline,
        changes=sweep.changes(trial),
        loss=loss,
        accuracy=summarize(list(trial.results("mlm_accuracy").values())),
        perplexity=None if loss.mean is None else math.exp(loss.mean) if loss.mean < 709 else math.inf,
        difference=paired_difference(baseline, {} if is_baseline else losses),
        real_tokens=sum(tokens) / len(tokens) if tokens else None,
    )


def _cost(trial: Trial) -> TrialCost:
    runs = [run for run in trial.runs if run.status == "finished"]
    stepping = sum(run.training_seconds for run in runs)
    timed = [run.outcome.seconds for run in runs if run.outcome and run.outcome.seconds is not None]
    return TrialCost(
        trial=trial,
        count=len(runs),
        seconds=sum(timed) / len(timed) if timed else None,
        tokens_per_second=sum(run.real_tokens for run in runs) / stepping if stepping else None,
    )
