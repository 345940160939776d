"""Loss curves over steps and tokens: per run, averaged over seeds, and thinned for plotting."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from mlm_jax.report.state import RunState

Kind = Literal["evaluation", "training"]

LOSS_KEYS: dict[Kind, str] = {"evaluation": "mlm_loss", "training": "loss"}


@dataclass(frozen=True)
class Curve:
    """A loss curve: three arrays of the same length with finite losses."""

    steps: np.ndarray
    tokens: np.ndarray
    """Number of real tokens seen up to each step."""
    losses: np.ndarray
    """In nats."""

    def take(self, indices: np.ndarray) -> "Curve":
        """Returns the points with these indices."""
        return Curve(self.steps[indices], self.tokens[indices], self.losses[indices])


def curve_of(run: RunState, kind: Kind) -> Curve:
    """Returns the finite losses logged by a run."""
    records: Sequence[dict[str, Any]] = run.evaluations if kind == "evaluation" else run.training
    key = LOSS_KEYS[kind]
    points = np.array([(r["step"], r[key]) for r in records if r[key] is not None], float).reshape(-1, 2)
    return Curve(points[:, 0], np.interp(points[:, 0], *run.token_counts), points[:, 1])


def stack_seeds(curves: Sequence[Curve]) -> tuple[Curve, np.ndarray]:
    """Returns the mean of curves at their common steps, and all their losses there, float [curves, points].

    Only common steps are used, because a mean over fewer runs would jump where the other runs end. Curves without
    points are left out.
    """
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return Curve(*np.empty((3, 0))), np.empty((0, 0))
    common = curves[0].steps
    for curve in curves[1:]:
        common = np.intersect1d(common, curve.steps)
    shared = [curve.take(np.searchsorted(curve.steps, common)) for curve in curves]
    losses = np.stack([curve.losses for curve in shared])
    return Curve(common, np.mean([curve.tokens for curve in shared], axis=0), losses.mean(axis=0)), losses


def thin(curve: Curve, most: int) -> Curve:
    """Returns at most `most` (at least 3) points that preserve the shape of the curve (largest triangle three buckets).

    Keeps the first and the last point and, from each bucket between them, the one that forms the largest triangle with
    the previous kept point and the mean of the next bucket, so spikes survive (Steinarsson 2013, Downsampling Time
    Series for Visual Representation).
    """
    count = len(curve.steps)
    if count <= most:
        return curve
    edges = np.linspace(1, count - 1, most - 1).astype(int)
    kept = [0]
    for number, (start, stop) in enumerate(pairwise(edges)):
        after = slice(stop, edges[number + 2] if number + 2 < len(edges) else count)
        x, y = curve.steps[kept[-1]], curve.losses[kept[-1]]
        next_x, next_y = curve.steps[after].mean(), curve.losses[after].mean()
        steps, losses = curve.steps[start:stop], curve.losses[start:stop]
        areas = np.abs((steps - x) * (next_y - y) - (next_x - x) * (losses - y))
        kept.append(int(start + np.argmax(areas)))
    return curve.take(np.array([*kept, count - 1]))


def group_medians(curve: Curve, num_groups: int) -> tuple[Curve, int]:
    """Returns medians over about `num_groups` groups of consecutive points, and the size of a group.

    A running mean would lag and follow spikes. A curve with fewer than two points per group is returned unchanged.
    """
    length = len(curve.steps) // num_groups
    if length < 2:
        return curve, 1
    whole = [values[len(values) % length :].reshape(-1, length) for values in vars(curve).values()]
    return Curve(*(np.median(values, axis=1) for values in whole)), length
