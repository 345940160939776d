"""Checkpoints: asynchronous Orbax saves, and a restore that never hands out a wrong or foreign state.

The restore policy, in the order in which it is applied to the newest checkpoint, then the one before it, …:

1. No checkpoint in the folder: `None`, the run starts at step 0.
2. Its manifest cannot be read, or the checksum is off: damaged. One warning line on stderr, on to the next.
3. It describes other data, another tokenizer, model or seed, or other array names, shapes or types:
   refused with `InputError`. The older ones in the folder belong to the same run, so none of them is tried.
4. Its arrays cannot be read, or have not the digests they were saved with: damaged, as in 2.
5. None is whole: `InputError`. To start anew by itself would throw the run away.

A checkpoint is the folder `STEP/` with `state/` (the arrays, one entry a leaf) and `manifest/` (JSON). Orbax
writes it under a temporary name and renames it when all is written, so that `STEP/` is whole or absent,
whenever the process is killed.
"""

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from mlm_jax.errors import InputError, RunError
from mlm_jax.parallel.digest import array_digests
from mlm_jax.store.checkpoint_manifest import (
    PyTree,
    describe_arrays,
    describe_differences,
    enumerate_some,
    name_leaves,
    sealed,
)
from mlm_jax.store.orbax_errors import reason, silence_orbax

# Orbax moves here what is no longer kept: a rename is done or not, a recursive delete can be half done.
_DELETED = "deleted"


class CheckpointError(RunError):
    """A checkpoint could not be written. One line: the step, the folder, the reason, what is left."""


class Checkpointer:
    """Saves and restores a pytree of `jax.Array` under `directory`, one folder a step.

    Use it as a context manager, or call `close`: a save that is under way when the program ends could not
    report its failure. One writer a folder; any number of processes may `restore` from it meanwhile. Under
    `jax.distributed`, every process makes every call.

    Nothing on disk changes before the first `save`, which removes what a killed process left half-written.

    Args:
        directory: made by the first `save` where it is missing.
        keep_newest: how many of the newest checkpoints are kept, at least 1; the one with the lowest
            evaluation loss is kept besides.
    """

    def __init__(self, directory: Path, *, keep_newest: int = 3) -> None:
        """Open the folder, which need not exist; see the class."""
        if keep_newest < 1:
            raise InputError(f"keep_newest: {keep_newest} is not a number of checkpoints, expected 1 or more")
        self.directory = Path(directory).absolute()
        self._eval_losses: dict[int, float | None] = {}
        self._damaged: set[int] = set()
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                lightweight_initialize=True,
                save_root_metadata=False,
                todelete_subdir=_DELETED,
                preservation_policy=_NewestAndBest(keep_newest, self._eval_losses),
            ),
        )

    def __enter__(self) -> Self:
        """The checkpointer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`."""
        self.close()

    def steps(self) -> list[int]:
        """The steps whose checkpoints are on disk now, ascending. A save under way does not count."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())

    def save(
        self,
        step: int,
        state: PyTree,
        description: dict[str, Any],
        *,
        examples: int = 0,
        eval_loss: float | None = None,
        log_sums: Mapping[str, float] | None = None,
    ) -> None:
        """Start to write a checkpoint; return as soon as the arrays were copied off the device.

        The caller may donate the buffers of `state` to its next step at once. A save that is still under way
        is waited for first. A step that is already there is left as it is. One that the last `restore` found
        damaged is moved aside to `STEP.damaged` by the first save after it, whatever its step.

        Args:
            step: the number of steps taken to reach `state`.
            state: pytree of `jax.Array`, on any mesh.
            description: nested dict of JSON values, what the checkpoint belongs to; `restore` compares it.
            examples: how many rows of data were taken to reach `state`.
            eval_loss: the evaluation loss of `state` in nats; None and NaN are never the best.
            log_sums: sums over the steps since the last line of the log, for `log_sums` to return.

        Raises:
            CheckpointError: this save could not be begun, or the one before it failed.
        """
        self.wait()
        self._saving = step
        try:
            self._clear_the_way()
            if step not in self.steps():
                own = {"examples": examples, "log_sums": dict(log_sums or {})}
                self._begin(step, state, description, own, eval_loss)
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, abstract_state: PyTree, description: dict[str, Any]) -> tuple[int, PyTree] | None:
        """The newest whole checkpoint as (step, state), or None where there is none. Changes nothing on disk.

        Args:
            abstract_state: the tree of `save` with a `jax.ShapeDtypeStruct` at every leaf, each with the
                sharding that it is to have now; the mesh of the save does not matter.
            description: what the caller would write now.

        Raises:
            InputError: the checkpoint belongs to something else (the message lists every difference), or
                every checkpoint is damaged.
        """
        return self._newest(abstract_state, description, part=None)

    def restore_part(
        self, part: str, abstract_part: PyTree, description: dict[str, Any]
    ) -> tuple[int, PyTree] | None:
        """As `restore`, for one attribute or key of the state, for instance "params"; the rest is not read.

        Of the description, only the keys of the given one are compared: whoever wants the parameters does not
        care which data made them.
        """
        return self._newest(abstract_part, description, part=part)

    def _newest(
        self, abstract: PyTree, description: dict[str, Any], *, part: str | None
    ) -> tuple[int, PyTree] | None:
        self.wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self._load(step, abstract, description, part=part)
            except _DamagedError as damage:
                self._damaged.add(step)
                self._eval_losses.pop(step, None)
                if jax.process_index() == 0:
                    folder = self.directory / str(step)
                    print(f"warning: checkpoint {folder} is damaged: {damage}", file=sys.stderr)
        if not steps:
            return None
        raise InputError(
            f"{self.directory}: every checkpoint is damaged ({enumerate_some(steps)}); name another output folder, "
            "or delete this one to start from step 0"
        )

    def examples(self, step: int) -> int:
        """The `examples` with which the checkpoint of `step`, one that `restore` has read, was saved."""
        return int(self._manifest(step)["examples"])

    def log_sums(self, step: int) -> dict[str, Any]:
        """The `log_sums` with which the checkpoint of `step` was saved; empty if it is older than these sums."""
        return dict(self._manifest(step).get("log_sums", {}))

    def best_eval_loss(self) -> float:
        """The lowest evaluation loss, in nats, of the checkpoints that there are; infinite where none has one."""
        if self._saving is None:
            self._read_eval_losses()
        return min((loss for loss in self._eval_losses.values() if loss is not None), default=math.inf)

    def wait(self) -> None:
        """Return when no save is under way and what is no longer kept is gone.

        Raises:
            CheckpointError: the save failed. Nothing of it is left on disk; the caller may save again.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None
        self._remove_leftovers()

    def close(self) -> None:
        """`wait`, then stop the threads. Raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _begin(
        self,
        step: int,
        state: PyTree,
        description: dict[str, Any],
        own: dict[str, Any],
        eval_loss: float | None,
    ) -> None:
        leaves, _ = name_leaves(state)
        loss = eval_loss if eval_loss is not None and math.isfinite(eval_loss) else None
        manifest = {
            "description": description,
            **own,
            "eval_loss": loss,
            "arrays": describe_arrays(leaves),
            "digests": array_digests(leaves),
        }
        self._eval_losses[step] = loss
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(leaves), manifest=ocp.args.JsonSave(sealed(manifest))
            ),
            force=True,
        )

    def _load(self, step: int, abstract: PyTree, description: dict[str, Any], *, part: str | None) -> PyTree:
        manifest = self._manifest(step)
        abstract_leaves, treedef = name_leaves(abstract, part)
        belongs_to, arrays = manifest["description"], manifest["arrays"]
        if part is not None:
            belongs_to = {key: value for key, value in belongs_to.items() if key in description}
            arrays = {name: array for name, array in arrays.items() if name.startswith(f"{part}.")}
        for stored, now, remedy in (
            (belongs_to, description, "continue with the same settings"),
            (arrays, describe_arrays(abstract_leaves), "restore into the model it was saved from"),
        ):
            if differences := describe_differences(stored, now):
                raise InputError(
                    f"checkpoint {self.directory / str(step)} belongs to something else: {differences}; "
                    f"{remedy}, or name another output folder"
                )
        target = ocp.args.PyTreeRestore(
            abstract_leaves,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_leaves),
            partial_restore=part is not None,
        )
        damage: Exception | None = None
        try:
            # Not by the manager, in whose barrier the others would wait for one that cannot read its part.
            leaves = self._read(ocp.PyTreeCheckpointHandler(), step, "state", target)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # the machine's trouble, not the file's
        except Exception as error:
            damage = error
        # Each process reads its own part of the arrays: damage that one has seen is damage for all.
        if _in_any_process(damage is not None):
            why = "another process could not read its part" if damage is None else reason(damage)
            raise _DamagedError(f"arrays: {why}") from damage
        digests = array_digests(leaves)
        if changed := [name for name in abstract_leaves if digests[name] != manifest["digests"].get(name)]:
            raise _DamagedError(f"the values of {enumerate_some(changed)} are not those that were saved")
        return treedef.unflatten([leaves[name] for name in abstract_leaves])

    def _read(
        self, handler: ocp.CheckpointHandler, step: int, item: str, args: ocp.args.CheckpointArgs
    ) -> Any:
        try:
            return handler.restore(self.directory / str(step) / item, args=args)
        finally:
            handler.close()

    def _manifest(self, step: int) -> dict[str, Any]:
        try:
            content = self._read(ocp.JsonCheckpointHandler(), step, "manifest", ocp.args.JsonRestore())
            whole = content == sealed(content["manifest"])
        except Exception as error:
            raise _DamagedError(f"manifest: {reason(error)}") from error
        if not whole:
            raise _DamagedError("manifest: the checksum does not match")
        return content["manifest"]

    def _read_eval_losses(self) -> None:
        """Once for each checkpoint of an earlier run, while no save is under way: Orbax would wait for it."""
        for step in self.steps():
            if step not in self._eval_losses and step not in self._damaged:
                try:
                    self._eval_losses[step] = self._manifest(step)["eval_loss"]
                except _DamagedError:
                    self._eval_losses[step] = None

    def _clear_the_way(self) -> None:
        """Before a save: make the folder, remove leftovers, move damaged checkpoints aside."""
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            for step in self._damaged.intersection(self.steps()):
                aside = self.directory / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
        if self._damaged:
            ocp.multihost.sync_global_processes("mlm_jax.store.checkpoint.moved_aside")
            self._damaged.clear()
            self._manager.reload()
        self._read_eval_losses()

    def _leftovers(self) -> list[Path]:
        if jax.process_index() != 0 or not self.directory.is_dir():
            return []
        return [
            path
            for path in self.directory.iterdir()
            if path.name == _DELETED or ocp.path.atomicity.TMP_DIR_SUFFIX in path.name
        ]

    def _remove_leftovers(self) -> None:
        for path in self._leftovers():
            shutil.rmtree(path, ignore_errors=True)

    def _settle(self) -> None:
        """Remove what a failed save left, until TensorStore no longer makes it again for its other writes."""
        start = last_seen = time.monotonic()
        while time.monotonic() < min(last_seen + 0.3, start + 10):
            if self._leftovers():
                self._remove_leftovers()
                last_seen = time.monotonic()
            time.sleep(0.05)

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._saving = self._saving, None
        self._settle()
        self._manager.reload()
        left = enumerate_some(self.steps()) or "none"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.directory}: {reason(error)}; "
            f"older checkpoints left as they were: {left}"
        )


def _in_any_process(here: bool) -> bool:
    return bool(multihost_utils.process_allgather(np.array(here)).any())


class _NewestAndBest:
    """Orbax preservation policy: the newest n and, besides, the one of the lowest evaluation loss.

    Orbax's own `BestN` reads losses from a file that crashes its constructor when it is damaged.
    """

    def __init__(self, keep_newest: int, eval_losses: Mapping[int, float | None]) -> None:
        self._keep_newest = keep_newest
        self._eval_losses = eval_losses

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        losses = {step: loss for step in steps if (loss := self._eval_losses[step]) is not None}
        kept = {*steps[-self._keep_newest :], *sorted(losses, key=lambda step: (losses[step], -step))[:1]}
        return [step in kept for step in steps]


class _DamagedError(Exception):
    """A checkpoint is not what was saved; the message says in what."""


silence_orbax()
