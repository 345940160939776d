"""Pictures of a sweep. Import this module only where it is used: matplotlib takes a second to import."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mlm_jax.report.curves import Curve, curve_of, stack_seeds
from mlm_jax.report.palette import COLORS, styles_of
from mlm_jax.report.results import TrialResult
from mlm_jax.report.state import SweepState

_NO_CLAIM_COLOR = "#6B7280"
_LAST_PART = 0.3
"""Fraction of the steps that the second panel enlarges, to separate trials that end close together."""


def losses_picture(sweep: SweepState) -> bytes | None:
    """Returns a PNG of evaluation loss over steps, for the whole run and its end; None if there is no loss.

    A line is the mean over the seeds of a trial; the band ranges from the lowest seed to the highest.
    """
    styles = styles_of([trial.name for trial in sweep.trials], sweep.baseline, "black")
    stacked = [
        stack_seeds([curve_of(run, "evaluation") for run in trial.curve_runs]) for trial in sweep.trials
    ]
    drawn = [
        (trial.name, *styled, *curves)
        for trial, styled, curves in zip(sweep.trials, styles, stacked, strict=True)
        if len(curves[0].steps)
    ]
    if not drawn:
        return None
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    whole, end = figure.subplots(1, 2)
    for name, color, dashes, mean, losses in drawn:
        for axes in (whole, end):
            axes.fill_between(
                mean.steps, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.15, lw=0
            )
            marker = "o" if len(mean.steps) <= 20 else None
            label = f"{name} (baseline)" if name == sweep.baseline else name
            axes.plot(
                *(mean.steps, mean.losses),
                **{"color": color, "linestyle": (0, dashes) if dashes else "-", "linewidth": 1.6},
                **{"marker": marker, "markersize": 3, "label": label},
            )
    last = max(mean.steps[-1] for *_, mean, _ in drawn)
    _decorate(whole, "whole run")
    _decorate(end, f"from step {(1 - _LAST_PART) * last:,.0f}")
    whole.set(ylabel="evaluation loss (nats per masked token)", xlim=(0, last * 1.02))
    end.set(xlim=((1 - _LAST_PART) * last, last * 1.005))
    _fit_losses(end, [(mean, losses) for *_, mean, losses in drawn])
    figure.suptitle(f"{sweep.name}: mean over seeds, band from the lowest seed to the highest")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return _png(figure)


def differences_picture(sweep: SweepState, results: Sequence[TrialResult]) -> bytes | None:
    """Returns a PNG of each trial's difference from the baseline with its 95% interval; None if there is no pair.

    Dots are the pairs of seeds. Differences whose interval covers zero are gray.
    """
    shown = [(result, result.difference.mean) for result in results if result.difference.mean is not None]
    if not shown:
        return None
    figure = Figure(figsize=(9, 1.5 + 0.42 * len(shown)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=0.9)
    for place, (result, mean) in enumerate(shown):
        difference = result.difference
        color = (COLORS[0] if mean < 0 else COLORS[3]) if difference.is_claim else _NO_CLAIM_COLOR
        axes.plot(difference.values, [place] * len(difference.values), "o", color=color, alpha=0.35, ms=4)
        if difference.low is not None and difference.high is not None:
            axes.plot([difference.low, difference.high], [place] * 2, color=color, lw=2, marker="|", ms=9)
        axes.plot([mean], [place], "D", color=color, markersize=6)
    axes.set_yticks(range(len(shown)), [result.trial.name for result, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    verdicts = axes.secondary_yaxis("right")
    verdicts.set_yticks(range(len(shown)), [result.verdict for result, _ in shown])
    verdicts.tick_params(length=0)
    verdicts.spines["right"].set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("difference in evaluation loss (nats per masked token); left of zero is better")
    axes.set_title(
        f"{sweep.name}: difference from {sweep.baseline}, paired by seed, 95% intervals", fontsize=11
    )
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.08)
    return _png(figure)


def _decorate(axes: Axes, title: str) -> None:
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _fit_losses(axes: Axes, drawn: Sequence[tuple[Curve, np.ndarray]]) -> None:
    """Fits the y axis to the losses within the range of the x axis."""
    left, right = axes.get_xlim()
    inside = [losses[:, (mean.steps >= left) & (mean.steps <= right)] for mean, losses in drawn]
    values = np.concatenate([losses.ravel() for losses in inside])
    if values.size:
        margin = 0.05 * np.ptp(values) or 0.05
        axes.set_ylim(values.min() - margin, values.max() + margin)


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
