"""The loss picture of a run. Imports matplotlib, which takes a second: import this module where it is used."""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mlm_jax.metrics import EVALUATIONS_FILE, METRICS_FILE, read_records

LOSS_PICTURE = "loss.png"

_TRAINING_COLOUR = "tab:blue"
_EVALUATION_COLOUR = "tab:orange"


def plot_losses(run_folder: Path) -> Path | None:
    """Draw `loss.png` from metrics.jsonl and eval.jsonl: loss in nats over steps.

    The training loss is drawn as it was logged, pale, and smoothed, bold; the evaluation loss with a marker at
    each evaluation. The y axis covers what was learned: spikes beyond it are cut. The picture is replaced
    atomically. Returns its path, or None where there is no finite loss yet and nothing was drawn.
    """
    training = _curve(run_folder / METRICS_FILE, "loss")
    evaluation = _curve(run_folder / EVALUATIONS_FILE, "mlm_loss")
    if not len(training) and not len(evaluation):
        return None
    # A figure of its own, not pyplot: the caller's backend and figures stay as they are.
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if len(training):
        window = max(1, len(training) // 50)
        label = "training"
        if window > 1:
            axes.plot(*training.T, color=_TRAINING_COLOUR, alpha=0.25, linewidth=0.8)
            label = f"training, mean of {window} points"
        axes.plot(*_smooth(training, window).T, color=_TRAINING_COLOUR, linewidth=1.8, label=label)
    if len(evaluation):
        marker = "o" if len(evaluation) <= 60 else None
        axes.plot(
            *evaluation.T, color=_EVALUATION_COLOUR, marker=marker, markersize=5, linewidth=1.5, label="evaluation"
        )
    axes.set(xlabel="step", ylabel="masked-LM loss (nats per token)", title=run_folder.resolve().name)
    axes.set_ylim(*_loss_range(training, evaluation))
    axes.grid(alpha=0.3)
    axes.legend()
    return _write(figure, run_folder / LOSS_PICTURE)


def _curve(path: Path, key: str) -> np.ndarray:
    """[points, 2] of (step, loss), without the losses that were not finite."""
    points = [(record["step"], record[key]) for record in read_records(path) if record[key] is not None]
    return np.array(points, dtype=float).reshape(-1, 2)


def _smooth(curve: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` points; over those that there are, at the start."""
    sums = np.cumsum(np.pad(curve[:, 1], (1, 0)))
    end = np.arange(1, len(curve) + 1)
    start = np.maximum(end - window, 0)
    return np.stack([curve[:, 0], (sums[end] - sums[start]) / (end - start)], axis=1)


def _loss_range(training: np.ndarray, evaluation: np.ndarray) -> tuple[float, float]:
    losses = np.concatenate([training[:, 1], evaluation[:, 1]])
    low, high = losses.min(), np.percentile(losses, 99.5)
    high = max(high, losses[0], evaluation[:, 1].max(initial=low))
    margin = 0.05 * (high - low) or 0.5
    return max(0.0, low - margin), high + margin


def _write(figure: Figure, path: Path) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        figure.savefig(file, format="png")
        file.flush()
        os.fsync(file.fileno())
    return temporary.replace(path)
