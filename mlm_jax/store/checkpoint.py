"""Checkpoints: asynchronous Orbax saves, and a restore that never returns a damaged state or the state of another run.

`restore` applies these rules to the newest checkpoint, then to the previous one, and so on:

1. There is no checkpoint in the folder: returns None, and the run starts at step 0.
2. The manifest cannot be read, or its checksum does not match: the checkpoint is damaged. Prints a warning on stderr
   and tries the previous checkpoint.
3. The checkpoint has different data, tokenizer, model or seed, or different array names, shapes or dtypes: raises
   `InputError`. Older checkpoints in the folder belong to the same run, so they are not tried.
4. The arrays cannot be read, their digests do not match, or a value is not finite: the checkpoint is damaged, as in 2.
5. Every checkpoint is damaged: raises `InputError`, because silently starting over would discard the run.

A checkpoint is the folder `STEP/` with `state/` (the arrays, one entry per leaf) and `manifest/` (JSON). Orbax writes
it under a temporary name and renames it at the end, so `STEP/` is complete or absent if the process is killed.
"""

import math
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mlm_jax.errors import InputError, RunError
from mlm_jax.parallel.digest import array_digests, nonfinite
from mlm_jax.store.checkpoint_manifest import (
    DamagedError,
    PyTree,
    abstract_arrays,
    completed,
    describe_arrays,
    describe_differences,
    enumerate_some,
    known_settings,
    name_leaves,
    read_item,
    read_manifest,
    sealed,
)
from mlm_jax.store.checkpoint_retention import DELETED_FOLDER, NewestAndBest, remove_leftovers, settle
from mlm_jax.store.orbax_errors import orbax_silenced, reason


def step_of(folder: Path) -> int | None:
    """Returns the step of a checkpoint by the name of its folder; None for other names, such as 0040 or 40.damaged."""
    name = folder.name
    return int(name) if name.isdecimal() and name == str(int(name)) else None


class CheckpointError(RunError):
    """A checkpoint could not be written. The message states step, folder, reason and remaining checkpoints."""


class Checkpointer:
    """Saves and restores a pytree of `jax.Array` under `directory`, one folder per step.

    Use it as a context manager, or call `close`; otherwise, a save still running at the end of the program cannot
    report a failure. A folder has one writer; any number of processes may `restore` from it at the same time. Under
    `jax.distributed`, every process makes every call.

    Nothing on disk changes before `put_aside` or the first `save`. Both remove partial checkpoints of a killed process.

    Args:
        directory: created by the first `save` if missing.
        keep_newest: number of newest checkpoints to keep, at least 1. The checkpoint with the lowest evaluation loss
            is also kept.
    """

    def __init__(self, directory: Path, *, keep_newest: int = 3) -> None:
        """Opens the folder, which may not exist yet; see the class."""
        if keep_newest < 1:
            raise InputError(f"keep_newest = {keep_newest}: must be at least 1")
        self.directory = Path(directory).absolute()
        self._eval_losses: dict[int, float | None] = {}
        # Checkpoints to rename at the next save, with their new suffixes.
        self._aside: dict[int, str] = {}
        self._from_step: int | None = None
        self._saving: int | None = None
        self._silence = ExitStack()
        self._silence.enter_context(orbax_silenced())
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                lightweight_initialize=True,
                save_root_metadata=False,
                todelete_subdir=DELETED_FOLDER,
                preservation_policy=NewestAndBest(keep_newest, self._eval_losses),
            ),
        )

    def __enter__(self) -> Self:
        """Returns the checkpointer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Calls `close`."""
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps with a checkpoint on disk, ascending, without a save still running."""
        if not self.directory.is_dir():
            return []
        steps = map(step_of, self.directory.iterdir())
        return sorted(step for step in steps if step is not None)

    def save(
        self,
        step: int,
        state: PyTree,
        description: dict[str, Any],
        *,
        examples: int = 0,
        eval_loss: float | None = None,
        log_sums: Mapping[str, float] | None = None,
        unevaluated: bool = False,
    ) -> None:
        """Starts writing a checkpoint, and returns as soon as the arrays are copied from the device.

        The caller may immediately donate the buffers of `state` to its next step. First waits for a save still running.
        Keeps an existing checkpoint of `step`. The first save after a `restore` calls `put_aside`.

        Args:
            step: number of steps taken to reach `state`.
            state: pytree of `jax.Array`, on any mesh.
            description: nested dict of JSON values that identifies the run; `restore` compares it.
            examples: number of rows of data seen to reach `state`.
            eval_loss: evaluation loss of `state` in nats; None and NaN are never the best.
            log_sums: sums over the steps since the last line of the log, to be returned by `log_sums`.
            unevaluated: an evaluation of `state` was due and did not end, to be returned by `unevaluated`.

        Raises:
            CheckpointError: an array has a NaN or infinite value, this save could not start, or the previous one
                failed.
        """
        self.wait()
        self._saving = step
        try:
            self.put_aside()
            self._read_eval_losses()
            if step not in self.steps():
                own = {
                    "step": step,
                    "examples": examples,
                    "log_sums": dict(log_sums or {}),
                    "unevaluated": unevaluated,
                    "from_step": self._from_step,
                }
                self._begin(step, state, description, own, eval_loss)
        except Exception as error:
            raise self._failed(error) from error

    def restore(
        self, abstract_state: PyTree, description: dict[str, Any], *, from_step: int | None = None
    ) -> tuple[int, PyTree] | None:
        """Returns the newest intact checkpoint as (step, state), or None if there is none. Changes nothing on disk.

        With `from_step`, returns the checkpoint of that step, or the newest one that was saved after an earlier call
        with the same `from_step`. `put_aside` renames the other later checkpoints.

        Args:
            abstract_state: the tree passed to `save` with a `jax.ShapeDtypeStruct` at every leaf, which determines the
                sharding of the array; the mesh of the save does not matter.
            description: description of the current run.

        Raises:
            InputError: the checkpoint belongs to another run (the message lists the differences), every checkpoint
                is damaged, or there is no checkpoint of `from_step`.
        """
        self.wait()
        steps = self.steps()
        if from_step is not None:
            ours = [s for s in steps if s > from_step and self._note(s, "from_step") == from_step]
            # It may be gone after the run was resumed from it and went on.
            if not ours:
                self._require(from_step)
            self._supersede([step for step in steps if step > from_step and step not in ours])
            steps = [step for step in steps if step == from_step or step in ours]
        found = self._newest(steps, abstract_state, description, part=None)
        if found is not None:
            self._from_step = from_step if from_step is not None else self._note(found[0], "from_step")
        return found

    def restore_part(
        self, part: str, abstract_part: PyTree, description: dict[str, Any], *, step: int | None = None
    ) -> tuple[int, PyTree] | None:
        """Restores one attribute or key of the state, such as "params", like `restore`; reads nothing else.

        Compares only what `description` and the checkpoint have in common, because the data do not matter to users of
        the parameters. With `step`, only that checkpoint is tried.
        """
        self.wait()
        if step is not None:
            self._require(step)
        steps = self.steps() if step is None else [step]
        while True:
            try:
                return self._newest(steps, abstract_part, description, part=part)
            except InputError:
                if step is not None or set(steps) <= set(self.steps()):
                    raise
                steps = self.steps()

    def _require(self, step: int) -> None:
        if step not in self.steps():
            kept = enumerate_some(self.steps()) or "none"
            raise InputError(f"{self.directory}: no checkpoint of step {step}; there are: {kept}")

    @property
    def superseded(self) -> list[int]:
        """Steps of the checkpoints that `put_aside` will rename, because they are later than the `from_step`."""
        return sorted(step for step, reason in self._aside.items() if reason == "superseded")

    def _supersede(self, steps: list[int]) -> None:
        for step in steps:
            self._aside[step] = "superseded"
            self._eval_losses.pop(step, None)

    def _newest(
        self, steps: list[int], abstract: PyTree, description: dict[str, Any], *, part: str | None
    ) -> tuple[int, PyTree] | None:
        for step in reversed(steps):
            try:
                return step, self._load(step, abstract, description, part=part)
            except DamagedError as damage:
                # A run that is being trained has removed it since.
                if step not in self.steps():
                    continue
                self._aside[step] = "damaged"
                self._eval_losses.pop(step, None)
                if jax.process_index() == 0:
                    folder = self.directory / str(step)
                    print(f"warning: checkpoint {folder} is damaged: {damage}", file=sys.stderr)
        if not steps:
            return None
        if steps != self.steps():
            raise InputError(f"{self.directory}: {enumerate_some(steps)} damaged; choose another checkpoint")
        raise InputError(
            f"{self.directory}: every checkpoint is damaged ({enumerate_some(steps)}); use another output folder, or "
            "delete this one to start from step 0"
        )

    def verify(self, step: int, description: dict[str, Any]) -> None:
        """Reads the checkpoint of `step`, on the CPU. Raises InputError if it is damaged or of something else."""
        try:
            manifest = self._manifest(step)
            known = completed(manifest["description"], description)
            changed = known | known_settings(description, known)
            self._load(step, abstract_arrays(manifest["arrays"]), changed, part=None)
        except DamagedError as damage:
            raise InputError(f"{self.directory / str(step)}: damaged: {damage}") from damage

    def examples(self, step: int) -> int:
        """Returns the `examples` saved with the checkpoint of `step`, which must have been restored."""
        return int(self._manifest(step)["examples"])

    def log_sums(self, step: int) -> dict[str, Any]:
        """Returns the `log_sums` saved with the checkpoint of `step`; empty if it has none."""
        return dict(self._manifest(step).get("log_sums", {}))

    def unevaluated(self, step: int) -> bool:
        """Returns True if an evaluation of the checkpoint of `step` was due and did not end."""
        return bool(self._note(step, "unevaluated"))

    def note_eval_loss(self, step: int, loss: float | None) -> None:
        """Adds the evaluation loss of a checkpoint that was saved without one, until this checkpointer is closed."""
        self._eval_losses[step] = _finite(loss)

    def _note(self, step: int, key: str) -> Any:
        try:
            return self._manifest(step).get(key)
        except DamagedError:
            return None

    def best_eval_loss(self) -> float:
        """Returns the lowest evaluation loss of the checkpoints, in nats; infinity if none has a loss."""
        if self._saving is None:
            self._read_eval_losses()
        return min((loss for loss in self._eval_losses.values() if loss is not None), default=math.inf)

    def wait(self) -> None:
        """Waits until no save is running and old checkpoints are deleted.

        Raises:
            CheckpointError: the save failed. No part of it remains on disk; the caller may save again.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None
        remove_leftovers(self.directory)

    def close(self) -> None:
        """Waits, then stops the threads. Raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._manager.close()
            self._silence.close()

    def _begin(
        self,
        step: int,
        state: PyTree,
        description: dict[str, Any],
        own: dict[str, Any],
        eval_loss: float | None,
    ) -> None:
        leaves, _ = name_leaves(state)
        loss = _finite(eval_loss)
        digests = array_digests(leaves)
        if names := nonfinite(digests):
            raise ValueError(f"NaN or infinite values in {enumerate_some(names)}")
        manifest = {
            "description": description,
            **own,
            "eval_loss": loss,
            "arrays": describe_arrays(leaves),
            "digests": {name: digest.bits for name, digest in digests.items()},
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
        # Earlier versions did not save it.
        if (saved := manifest.get("step", step)) != step:
            raise DamagedError(f"is the checkpoint of step {saved}: its folder was renamed")
        abstract_leaves, treedef = name_leaves(abstract, part)
        belongs_to, arrays = completed(manifest["description"], description), manifest["arrays"]
        if part is not None:
            description = known_settings(description, belongs_to)
            belongs_to = {name: belongs_to[name] for name in description}
            arrays = {name: array for name, array in arrays.items() if name.startswith(f"{part}.")}
        for stored, now, remedy in (
            (belongs_to, description, "continue with the same settings and tokenizer"),
            (arrays, describe_arrays(abstract_leaves), "restore into the model it was saved from"),
        ):
            if differences := describe_differences(stored, now):
                raise InputError(
                    f"checkpoint {self.directory / str(step)} belongs to something else: {differences}; "
                    f"{remedy}, or use another output folder"
                )
        target = ocp.args.PyTreeRestore(
            abstract_leaves,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_leaves),
            partial_restore=part is not None,
        )
        damage: Exception | None = None
        try:
            # Bypasses the manager, because its barrier would wait for a process that cannot read its part.
            leaves = read_item(ocp.PyTreeCheckpointHandler(), self.directory / str(step) / "state", target)
            # Orbax leaves the description of an array that its metadata do not list.
            if absent := [name for name in abstract_leaves if not isinstance(leaves.get(name), jax.Array)]:
                raise ValueError(f"{enumerate_some(absent)} not found")
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise  # a fault of the machine, not of the file
        except Exception as error:
            damage = error
        # Each process reads its own part of the arrays, so damage found by one process affects all.
        if _in_any_process(damage is not None):
            why = "another process could not read its part" if damage is None else reason(damage)
            raise DamagedError(f"arrays: {why}") from damage
        digests, saved = array_digests(leaves), manifest["digests"]
        if changed := [name for name in abstract_leaves if digests[name].bits != saved.get(name)]:
            raise DamagedError(f"the values of {enumerate_some(changed)} differ from those saved")
        if names := nonfinite(digests):
            raise DamagedError(f"NaN or infinite values in {enumerate_some(names)}")
        return treedef.unflatten([leaves[name] for name in abstract_leaves])

    def _manifest(self, step: int) -> dict[str, Any]:
        return read_manifest(self.directory / str(step))

    def _read_eval_losses(self) -> None:
        """Reads each loss once. Called while no save is running, because Orbax would wait for it."""
        for step in self.steps():
            if step not in self._eval_losses and step not in self._aside:
                self._eval_losses[step] = self._note(step, "eval_loss")

    def put_aside(self) -> None:
        """Renames checkpoints that `restore` passed over, creates the folder, and removes leftovers.

        Damaged checkpoints become `STEP.damaged`, and those after its `from_step` `STEP.superseded`.
        """
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.directory)
            for step in self._aside.keys() & set(self.steps()):
                aside = self.directory / f"{step}.{self._aside[step]}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
        if self._aside:
            ocp.multihost.sync_global_processes("mlm_jax.store.checkpoint.moved_aside")
            self._aside.clear()
            self._manager.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._saving = self._saving, None
        settle(self.directory)
        self._manager.reload()
        left = enumerate_some(self.steps()) or "none"
        return CheckpointError(
            f"the checkpoint of step {step} could not be written to {self.directory}: {reason(error)}; "
            f"older checkpoints are intact: {left}"
        )


def _in_any_process(here: bool) -> bool:
    return bool(multihost_utils.process_allgather(np.array(here)).any())


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
