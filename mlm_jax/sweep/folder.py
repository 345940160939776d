"""What may be done in a sweep's folder: a new one is begun, and one of the same sweep goes on.

SWEEP/sweep.json  TRIAL/seed_S/ a run folder, with outcome.json and, while it is trained, a lock on claim
A lock on SWEEP/claim is held by whoever writes what is the whole sweep's.
"""

import json
from dataclasses import asdict
from pathlib import Path

from mlm_jax.config import TrainConfig
from mlm_jax.data.files import PARTIAL_SUFFIX
from mlm_jax.errors import InputError
from mlm_jax.settings import changed_settings, from_json
from mlm_jax.sweep.claims import CLAIM_FILE, locked
from mlm_jax.sweep.plan import Sweep
from mlm_jax.sweep.records import SWEEP_FILE, SweepRecord, read_sweep_record, write_sweep_record

# They may change between one start of a trial and the next: what it learns does not depend on them.
_OF_NO_RESULT = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "compilation_cache_dir",
    "max_nonfinite_steps",
    "data.prefetch_batches",
    "distributed.timeout_seconds",
)


def begin(folder: Path, sweep: Sweep, num_seeds: int) -> None:
    """Write sweep.json, or see that what is there is the same sweep; trials and seeds may have come since.

    Trials that the file of the sweep has no more stay in it after those that it has, if a run of theirs was begun.

    Raises:
        InputError: the folder holds something else, another sweep, or a trial that was begun with another config.
    """
    # Without the lock first, which would leave a folder behind, or a file in one that is not the sweep's.
    check(folder, sweep)
    with locked(folder):
        before = check(folder, sweep)
        trials = {name: asdict(config) for name, config in sweep.trials.items()}
        seeds = list(range(num_seeds))
        if before is not None:
            begun = {name: tree for name, tree in before.trials.items() if (folder / name).is_dir()}
            trials |= {name: tree for name, tree in begun.items() if name not in trials}
            seeds = max(seeds, before.seeds, key=len)
        record = SweepRecord(
            name=sweep.name,
            source=sweep.source,
            description=sweep.description,
            baseline=sweep.baseline,
            seeds=seeds,
            trials=trials,
        )
        write_sweep_record(folder, record)


def check(folder: Path, sweep: Sweep) -> SweepRecord | None:
    """What the folder has of that sweep; None where it is new. Raises what `begin` raises; writes nothing."""
    before = read_sweep_record(folder)
    if before is None:
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise InputError(
                f"{folder}: holds no sweep: must be a new folder, or one of the sweep {sweep.name!r}"
            )
        return None
    if before.name != sweep.name:
        raise InputError(
            f"{folder}: holds the sweep {before.name!r}: must be a folder of its own for {sweep.name!r}"
        )
    for trial in before.trials.keys() & sweep.trials.keys():
        _require_unchanged(folder, sweep, trial, before)
    return before


def _require_unchanged(folder: Path, sweep: Sweep, trial: str, before: SweepRecord) -> None:
    try:
        config = from_json(TrainConfig, json.dumps(before.trials[trial]))
    except InputError as error:
        raise InputError(f"{folder / SWEEP_FILE}: trial {trial!r}: {error}") from error
    for setting, (old, new) in changed_settings(config, sweep.trials[trial]).items():
        if setting not in _OF_NO_RESULT:
            raise InputError(
                f"{sweep.source}: trial {trial!r} was begun in {folder} with {setting} = {old!r}, and has {new!r} now: "
                "must be a trial of another name, or go to another folder"
            )


def _is_foreign(path: Path) -> bool:
    """Whether it is nothing that processes which begin the same sweep at this moment have there."""
    return path.name != CLAIM_FILE and not path.name.endswith(PARTIAL_SUFFIX)
