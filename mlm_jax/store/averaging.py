"""Weighted mean of models with the same shape and tokenizer, such as the last checkpoints of a run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlm_jax.config.model import WEIGHT_COMPATIBLE_SETTINGS
from mlm_jax.config.settings import changed_settings
from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import StoredModel
from mlm_jax.store.checkpoint import Checkpointer
from mlm_jax.store.loading import load_model
from mlm_jax.store.run_folder import CHECKPOINTS_FOLDER, is_run_folder


def last_checkpoints(run: str | Path, count: int) -> list[Path]:
    """Returns the folders of the last `count` checkpoints of a run, oldest first.

    Raises:
        InputError: the folder is not that of a run, or the run has fewer checkpoints.
    """
    folder = Path(run)
    if not is_run_folder(folder):
        raise InputError(f"{run}: not a run folder, whose last checkpoints could be averaged")
    with Checkpointer(folder / CHECKPOINTS_FOLDER) as checkpointer:
        steps = checkpointer.steps()
    if not 1 <= count <= len(steps):
        raise InputError(
            f"{run}: has {len(steps)} checkpoints: must have {count}, at least 1; keep_checkpoints = {count} keeps them"
        )
    return [folder / CHECKPOINTS_FOLDER / str(step) for step in steps[-count:]]


def average_models(
    models: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> StoredModel:
    """Returns a model whose parameters are the weighted mean of those of `models` (Izmailov et al. 2018).

    Sums are float64, and a parameter has the dtype that it has in the first model. One model is in memory at a time.

    Args:
        models: names as in `load_model`.
        weights: positive numbers, one per model, in any unit; by default, all models count the same.
        advance: is called after each model.

    Raises:
        InputError: there are fewer than two models, a model cannot be loaded, differs from the first in its shape,
            tokenizer, parts or labels, or the weights are not positive numbers, one per model.
    """
    shares = [1.0] * len(models) if weights is None else [float(weight) for weight in weights]
    if len(models) < 2:
        raise InputError(f"{len(models)} model: must be at least two")
    if len(shares) != len(models) or not all(weight > 0 and math.isfinite(weight) for weight in shares):
        raise InputError(
            f"weights {list(weights or ())}: must be {len(models)} positive numbers, one per model"
        )
    first, total = load_model(models[0]), None
    for name, weight in zip(models, shares, strict=True):
        model = first if total is None else load_model(name)
        if total is not None:
            _check_alike(models[0], first, name, model)
        share = weight / math.fsum(shares)
        own = jax.tree.map(lambda array, share=share: share * np.asarray(array, np.float64), model.params)
        total = own if total is None else jax.tree.map(np.add, total, own)
        if model.training != first.training:
            first = replace(first, training=None)
        advance()
    params = jax.tree.map(lambda mean, array: mean.astype(array.dtype), total, first.params)
    return replace(first, params=params)


def _check_alike(first_name: str | Path, first: StoredModel, name: str | Path, model: StoredModel) -> None:
    changed = changed_settings(first.config, model.config)
    differing = {
        setting: pair for setting, pair in changed.items() if setting not in WEIGHT_COMPATIBLE_SETTINGS
    }
    pairs: dict[str, tuple[Any, Any]] = differing | {
        what: pair
        for what, pair in {
            "parts": (", ".join(first.params), ", ".join(model.params)),
            "labels": (first.labels, model.labels),
            "problem_type": (first.problem_type, model.problem_type),
            "tokenizer": (first.tokenizer.fingerprint[:12], model.tokenizer.fingerprint[:12]),
        }.items()
        if pair[0] != pair[1]
    }
    if pairs:
        listed = "; ".join(f"{what} is {own}, must be {wanted}" for what, (wanted, own) in pairs.items())
        raise InputError(f"{name}: differs from {first_name}: {listed}")
