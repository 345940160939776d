"""Plots of runs and probes. Import this module only where it is used: matplotlib takes a second to import."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from mlm_jax.files.atomic import write_atomically
from mlm_jax.run.records import EVALUATIONS_FILE, METRICS_FILE, read_records

LOSS_PICTURE = "loss.png"

_TRAINING_COLOR = "tab:blue"
_EVALUATION_COLOR = "tab:orange"
_FEW_POINTS = 50


def plot_losses(run_folder: Path) -> Path | None:
    """Draws `loss.png` from metrics.jsonl and eval.jsonl: loss in nats over steps.

    The training loss is drawn pale as logged, and bold as the medians of about a hundred intervals; the evaluation loss
    has a marker at each evaluation. Spikes above the range of the other losses are cut off. The file is replaced
    atomically. Returns its path, or None if there is no finite loss to draw.
    """
    training = _curve(run_folder / METRICS_FILE, "loss")
    evaluation = _curve(run_folder / EVALUATIONS_FILE, "mlm_loss")
    if not len(training) and not len(evaluation):
        return None
    # Without pyplot, which would change the caller's backend and figures.
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, training, _TRAINING_COLOR, "training")
    _draw(axes, evaluation, _EVALUATION_COLOR, "evaluation")
    axes.set(xlabel="step", ylabel="masked-LM loss (nats per token)", title=run_folder.resolve().name)
    axes.set_xlim(left=0)
    axes.set_ylim(*_loss_range(training, evaluation))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # a falling loss leaves room there; "best" would search all points
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomically(run_folder / LOSS_PICTURE, content.getvalue())
    return run_folder / LOSS_PICTURE


def plot_estimates(
    path: Path,
    title: str,
    unit: str,
    estimates: Sequence[tuple[str, float, float | None, float | None]],
    neutral: float,
) -> None:
    """Draws (name, value, low, high) as bars from `neutral` with intervals, and writes the file atomically.

    Values are fractions, shown as percentages, unless `neutral` is 0.
    """
    height = 1.2 + 0.32 * len(estimates)
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(estimates))
    values = np.array([value for _, value, _, _ in estimates])
    colors = np.where(values >= neutral, _TRAINING_COLOR, _EVALUATION_COLOR)
    axes.barh(places, values - neutral, left=neutral, color=colors, alpha=0.75, height=0.7)
    for place, (_, _, low, high) in zip(places, estimates, strict=True):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color="black", linewidth=1.2, marker="|", markersize=6)
    axes.axvline(neutral, color="black", linewidth=0.8)
    axes.set_yticks(places, [name for name, *_ in estimates])
    axes.invert_yaxis()
    axes.set(xlabel=unit, title=title)
    if neutral:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(y=0.02)
    axes.grid(axis="x", alpha=0.3)
    content = BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _curve(path: Path, key: str) -> np.ndarray:
    """Returns [points, 2] of (step, loss), without non-finite losses."""
    points = [
        (record["step"], record[key]) for record in read_records(path, [key]) if record[key] is not None
    ]
    curve = np.array(points, dtype=float).reshape(-1, 2)
    return curve[np.abs(curve[:, 1]) <= np.finfo(np.float32).max]


def _draw(axes: Axes, curve: np.ndarray, color: str, label: str) -> None:
    if not len(curve):
        return
    if (interval := len(curve) // 100) > 1:
        axes.plot(*curve.T, color=color, alpha=0.25, linewidth=0.8)
        curve, label = _medians(curve, interval), f"{label}, median of {interval} points"
    marker = "o" if len(curve) <= _FEW_POINTS else None
    axes.plot(*curve.T, color=color, marker=marker, markersize=4, linewidth=1.6, label=label)


def _medians(curve: np.ndarray, interval: int) -> np.ndarray:
    """Returns medians of `interval` points each, which spikes do not affect: [points // interval, 2]."""
    full_intervals = curve[len(curve) % interval :]
    return np.median(full_intervals.reshape(-1, interval, 2), axis=1)


def _loss_range(training: np.ndarray, evaluation: np.ndarray) -> tuple[float, float]:
    """Returns the lowest loss and the highest that is not a spike, with a margin; the first loss is never a spike."""
    losses = np.concatenate([training[:, 1], evaluation[:, 1]])
    low, high = losses.min(), max(np.percentile(losses, 99.5), losses[0], evaluation[:, 1].max(initial=0.0))
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin
