"""Starts a sweep in a folder, or checks that the folder contains the same sweep.

SWEEP/sweep.json
SWEEP/TRIAL/seed_S/   a run folder with outcome.json

A process holds the lock of a run folder while it trains the run, and the lock of SWEEP while it writes files there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import from_json
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import PARTIAL_SUFFIX
from mlm_jax.files.folder_lock import LOCK_FILE, lock_folder
from mlm_jax.sweep.plan import Sweep, changed_results, require_comparable
from mlm_jax.sweep.records import SWEEP_FILE, SweepRecord, read_sweep_record, write_sweep_record

Fingerprints = Mapping[str, Mapping[str, str]]
"""Fingerprints of each trial's data, under the keys `training` and `evaluation`."""


def begin(folder: Path, sweep: Sweep, num_seeds: int, data: Fingerprints) -> None:
    """Writes sweep.json, or adds new trials and seeds to the existing one.

    Trials removed from the file of the sweep are kept, after the others, if any of their runs started.

    Raises:
        InputError: the folder contains other files or another sweep, or a trial that started with a different config,
            different data, or a different evaluation.
    """
    # First without the lock, which would leave a file in a folder that does not belong to the sweep.
    check(folder, sweep, data)
    with lock_folder(folder, wait=True):
        begun = check(folder, sweep, data)
        record = SweepRecord(
            name=sweep.name,
            source=sweep.source,
            description=sweep.description,
            baseline=sweep.baseline,
            seeds=list(range(num_seeds)),
            trials={name: asdict(config) for name, config in sweep.trials.items()},
            data={name: dict(data[name]) for name in sweep.trials},
        )
        if begun is not None:
            record = replace(
                record,
                seeds=max(record.seeds, begun.seeds, key=len),
                trials=record.trials | {n: t for n, t in begun.trials.items() if n not in record.trials},
                data=record.data | {n: d for n, d in begun.data.items() if n not in record.data},
            )
        write_sweep_record(folder, record)


def check(folder: Path, sweep: Sweep, data: Fingerprints) -> SweepRecord | None:
    """Returns the sweep's record with the trials that have started runs, or None if the folder is new.

    Writes nothing. Raises InputError as `begin` does.
    """
    # Before reading the record, because another process that starts the sweep writes the record first.
    is_foreign = folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir())))
    before = read_sweep_record(folder)
    if before is None:
        if is_foreign:
            raise InputError(
                f"{folder}: contains no sweep: must be a new folder or the folder of the sweep {sweep.name!r}"
            )
        return None
    if before.name != sweep.name:
        raise InputError(
            f"{folder}: contains the sweep {before.name!r}: the sweep {sweep.name!r} must have its own folder"
        )
    begun = [name for name in before.trials if (folder / name).is_dir()]
    configs = {name: _config(folder, before, name) for name in begun}
    for name in begun:
        if name in sweep.trials:
            _require_unchanged(folder, sweep, name, configs[name])
        _require_same_data(folder, before.data[name], data.get(name, data[sweep.baseline]), name, sweep)
    gone = {name: config for name, config in configs.items() if name not in sweep.trials}
    try:
        require_comparable(replace(sweep, trials={**sweep.trials, **gone}))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return replace(
        before,
        trials={name: before.trials[name] for name in begun},
        data={name: before.data[name] for name in begun},
    )


def _config(folder: Path, record: SweepRecord, trial: str) -> TrainConfig:
    try:
        return from_json(TrainConfig, json.dumps(record.trials[trial]))
    except InputError as error:
        raise InputError(f"{folder / SWEEP_FILE}: trial {trial!r}: {error}") from error


def _require_unchanged(folder: Path, sweep: Sweep, trial: str, before: TrainConfig) -> None:
    for setting, (old, new) in changed_results(before, sweep.trials[trial]).items():
        raise InputError(
            f"{sweep.source}: trial {trial!r} started in {folder} with {setting} = {old!r} and now has {new!r}: "
            "must have another name, or be run in another folder"
        )


def _require_same_data(
    folder: Path, before: Mapping[str, str], now: Mapping[str, str], trial: str, sweep: Sweep
) -> None:
    # The current training data of a removed trial are unknown.
    kinds = ("training", "evaluation") if trial in sweep.trials else ("evaluation",)
    for kind in kinds:
        if before.get(kind) != now[kind]:
            raise InputError(
                f"{sweep.source}: trial {trial!r} started in {folder} on other {kind} data (fingerprint "
                f"{before.get(kind)}, now {now[kind]}): must have the same data or another folder"
            )


def _is_foreign(path: Path) -> bool:
    """Returns True unless another process that starts the same sweep may have created the file."""
    return path.name != LOCK_FILE and not path.name.endswith(PARTIAL_SUFFIX)
