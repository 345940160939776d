"""Decides which checkpoints are kept, and removes what is left of others."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

# Orbax moves old checkpoints here first, because a recursive delete can be interrupted, but a rename cannot.
DELETED_FOLDER = "deleted"


def remove_leftovers(directory: Path) -> None:
    """Removes deleted and incomplete checkpoints, in process 0."""
    for path in _leftovers(directory):
        shutil.rmtree(path, ignore_errors=True)


def settle(directory: Path) -> None:
    """Removes leftovers of a failed save until TensorStore's remaining writes no longer recreate them."""
    start = last_seen = time.monotonic()
    while time.monotonic() < min(last_seen + 0.3, start + 10):
        if _leftovers(directory):
            remove_leftovers(directory)
            last_seen = time.monotonic()
        time.sleep(0.05)


def _leftovers(directory: Path) -> list[Path]:
    if jax.process_index() != 0 or not directory.is_dir():
        return []
    temporary = ocp.path.atomicity.TMP_DIR_SUFFIX
    return [path for path in directory.iterdir() if path.name == DELETED_FOLDER or temporary in path.name]


class NewestAndBest:
    """Orbax preservation policy: the newest n checkpoints, and the one with the lowest evaluation loss.

    Orbax's `BestN` reads losses from a file, and its constructor crashes if the file is damaged.
    """

    def __init__(self, keep_newest: int, eval_losses: Mapping[int, float | None]) -> None:
        """`eval_losses` has the loss of every checkpoint at the time of a decision."""
        self._keep_newest = keep_newest
        self._eval_losses = eval_losses

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Returns True for each checkpoint to keep."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        losses = {step: loss for step in steps if (loss := self._eval_losses[step]) is not None}
        kept = {*steps[-self._keep_newest :], *sorted(losses, key=lambda step: (losses[step], -step))[:1]}
        return [step in kept for step in steps]
