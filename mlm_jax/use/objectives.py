"""Objectives of fine-tuning: targets, loss, predictions and metrics of each problem type of transformers.

    problem type                  target of a text          loss                   score of an output   best epoch
    single_label_classification   one class                 cross-entropy          softmax              accuracy
    multi_label_classification    any number of classes     binary cross-entropy   sigmoid              micro F1
    regression                    a number per output       squared error          the output itself    RMSE

A classifier with one output is a regression if its problem type says so; otherwise its output is the logit of a
probability, as in transformers' pipeline and in cross-encoders.

N texts, C outputs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import rankdata

from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import ProblemType, StoredModel, unnamed_classes
from mlm_jax.run.reporting import say
from mlm_jax.use.labels import Where, check_count, class_targets, label_matrix, shown, value_matrix

Metrics = dict[str, float | None]

# Far above any classifier, so that a mistyped number is an error and not an attempt to allocate it.
_MOST_OUTPUTS = 1 << 22


@dataclass(frozen=True)
class Objective:
    """Everything that depends on the problem type."""

    targets: Callable[[Sequence[Any], Sequence[str], Where], np.ndarray]
    """Maps labels, names of the outputs and places in messages to targets: int32 [N] or float32 [N, C]."""
    losses: Callable[[Array, Array], Array]
    """Maps logits [N, C] and targets to the loss of each text, [N]."""
    correct: Callable[[Array, Array], Array]
    """Maps logits and targets to the share of right decisions for each text, [N]; NaN if there are no decisions."""
    scores: Callable[[Array], Array]
    """Maps logits to probabilities or values, [N, C]."""
    predictions: Callable[[np.ndarray], np.ndarray]
    """Maps scores [N, C] to predictions: int [N], bool [N, C] or float32 [N, C]."""
    metrics: Callable[[np.ndarray, np.ndarray], Metrics]
    """Maps scores and targets to metrics; None if undefined."""
    best: tuple[str, int]
    """Metric that selects the best epoch, and 1 if the highest is the best or -1 if the lowest is."""


def _softmax_losses(logits: Array, targets: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]


def _sigmoid_losses(logits: Array, targets: Array) -> Array:
    losses = -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)
    return jnp.mean(losses, axis=1)


def _accuracy(scores: np.ndarray, targets: np.ndarray) -> Metrics:
    return {"accuracy": float(np.mean(np.argmax(scores, axis=1) == targets))}


def _label_metrics(scores: np.ndarray, targets: np.ndarray) -> Metrics:
    found, wanted = scores >= 0.5, targets >= 0.5
    chosen = found.sum() + wanted.sum()
    return {
        "micro_f1": float(2 * (found & wanted).sum() / chosen) if chosen else None,
        # All labels of a text must be right, as in scikit-learn.
        "accuracy": float(np.mean((found == wanted).all(axis=1))),
    }


def _value_metrics(scores: np.ndarray, targets: np.ndarray) -> Metrics:
    scores, targets = scores.astype(np.float64), targets.astype(np.float64)
    ranks = [rankdata(values, axis=0) for values in (scores, targets)]
    return {
        "pearson": _correlation(scores, targets),
        "spearman": _correlation(*ranks),
        "rmse": float(np.sqrt(np.mean((scores - targets) ** 2))),
    }


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Returns the mean over the outputs of Pearson's correlation, or None if values of an output are all equal."""
    first, second = (values - values.mean(axis=0, keepdims=True) for values in (first, second))
    norms = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    return float(np.mean((first * second).sum(axis=0) / norms)) if norms.all() else None


OBJECTIVES: Mapping[ProblemType, Objective] = {
    "single_label_classification": Objective(
        targets=class_targets,
        losses=_softmax_losses,
        correct=lambda logits, targets: 1.0 * (jnp.argmax(logits, axis=1) == targets),
        scores=jax.nn.softmax,
        predictions=lambda scores: np.argmax(scores, axis=1),
        metrics=_accuracy,
        best=("accuracy", 1),
    ),
    "multi_label_classification": Objective(
        targets=label_matrix,
        losses=_sigmoid_losses,
        correct=lambda logits, targets: jnp.mean((logits >= 0) == (targets >= 0.5), axis=1),
        scores=jax.nn.sigmoid,
        predictions=lambda scores: scores >= 0.5,
        metrics=_label_metrics,
        best=("micro_f1", 1),
    ),
    "regression": Objective(
        targets=value_matrix,
        losses=lambda logits, targets: jnp.mean((logits - targets) ** 2, axis=1),
        correct=lambda logits, targets: jnp.full(len(logits), jnp.nan),
        scores=lambda logits: logits,
        predictions=lambda scores: scores,
        metrics=_value_metrics,
        best=("rmse", -1),
    ),
}


def problem_of(problem_type: str | None, num_outputs: int) -> ProblemType:
    """Returns the problem type of a classifier, which may be unknown (None), by the rules of transformers' pipeline."""
    if problem_type == "regression":
        return "regression"
    if problem_type == "multi_label_classification" or num_outputs == 1:
        return "multi_label_classification"
    return "single_label_classification"


def check_problem_type(problem_type: str | None) -> None:
    """Raises InputError if the name is not None and not a problem type."""
    if problem_type is not None and problem_type not in get_args(ProblemType):
        names = ", ".join(map(repr, get_args(ProblemType)))
        raise InputError(f"problem_type = {problem_type!r}: must be one of {names}")


def num_outputs_of(problem_type: str | None, num_classes: int | None) -> int:
    """Returns the number of outputs of a new classifier.

    Raises:
        InputError: the problem type needs a number that is not given, or does not allow it.
    """
    if problem_type == "multi_label_classification" and num_classes is None:
        raise InputError(
            "problem_type = 'multi_label_classification': must be given with labels or num_classes"
        )
    wanted = (1 if problem_type == "regression" else 2) if num_classes is None else num_classes
    least = 1 if problem_type in ("regression", "multi_label_classification") else 2
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or wanted < least:
        hint = (
            "; one output is a 'regression' or, for a probability, a 'multi_label_classification' (problem_type)"
            if wanted == 1
            else ""
        )
        raise InputError(f"num_classes = {wanted!r}: must be a whole number, at least {least}{hint}")
    if wanted > _MOST_OUTPUTS:
        raise InputError(f"num_classes = {wanted}: must be at most {_MOST_OUTPUTS:,}")
    return int(wanted)


def rank_of(objective: Objective, metrics: Mapping[str, float | None]) -> float:
    """Returns a number that is higher for better metrics; -inf if the metric that selects is undefined."""
    name, sign = objective.best
    value = metrics[name]
    return -math.inf if value is None or math.isnan(value) else sign * value


def check_trained_head(
    model: str | Path,
    stored: StoredModel,
    num_classes: int | None,
    names: Sequence[str] | None,
    problem_type: ProblemType | None,
    ordered: bool,
) -> None:
    """Raises InputError if an argument contradicts the classifier of a stored model.

    Names that only state positions (LABEL_0, 0) may be replaced by others, which is reported on stderr.
    """
    known = tuple(stored.labels or ())
    remedy = "; mlm-jax convert --backbone-only leaves a classifier out"
    if stored.problem_type is not None and problem_type not in (None, stored.problem_type):
        raise InputError(
            f"{model}: has problem_type {stored.problem_type!r}: must not be given {problem_type!r}{remedy}"
        )
    if num_classes is not None:
        check_count("num_classes", num_classes)
    wanted = len(names) if names is not None and ordered else num_classes
    if wanted not in (None, len(known)):
        raise InputError(f"{model}: has {len(known)} classes: must have the requested {wanted}{remedy}")
    if names is None or tuple(names) == known or (not ordered and set(names) <= set(known)):
        return
    are_positions = known in (
        tuple(str(index) for index in range(len(known))),
        unnamed_classes(len(known)),
    )
    if len(names) != len(known) or not are_positions or set(names) & set(known):
        raise InputError(
            f"{model}: has the classes {shown(known)}, in this order: must not be given {shown(names)}{remedy}"
        )
    say(f"{model}: the classes {shown(known)} are now called {shown(names)}")
