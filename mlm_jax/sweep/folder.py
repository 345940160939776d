"""What may be done in a sweep's folder: a new one is begun, and one of the same sweep goes on.

SWEEP/sweep.json  TRIAL/seed_S/ a run folder, with outcome.json and, while it is trained, a lock on claim
A lock on SWEEP/claim is held by whoever writes what is the whole sweep's.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import from_json
from mlm_jax.errors import InputError
from mlm_jax.files import PARTIAL_SUFFIX
from mlm_jax.sweep.claims import CLAIM_FILE, locked
from mlm_jax.sweep.plan import Sweep, changed_results, require_comparable
from mlm_jax.sweep.records import SWEEP_FILE, SweepRecord, read_sweep_record, write_sweep_record

Fingerprints = Mapping[str, Mapping[str, str]]
"""Of the training and of the evaluation data of each trial, under the keys `training` and `evaluation`."""


def begin(folder: Path, sweep: Sweep, num_seeds: int, data: Fingerprints) -> None:
    """Write sweep.json, or see that what is there is the same sweep; trials and seeds may have come since.

    Trials that the file of the sweep has no more stay in it after those that it has, if a run of theirs was begun.

    Raises:
        InputError: the folder holds something else, another sweep, a trial that was begun with another config or on
            other data, or one that was evaluated otherwise.
    """
    # Without the lock first, which would leave a folder behind, or a file in one that is not the sweep's.
    check(folder, sweep, data)
    with locked(folder):
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
    """What the folder has of that sweep, with the trials of which a run was begun; None where it is new.

    Raises what `begin` raises; writes nothing.
    """
    # Before the record is read: another process that begins the sweep writes that first.
    is_foreign = folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir())))
    before = read_sweep_record(folder)
    if before is None:
        if is_foreign:
            raise InputError(
                f"{folder}: holds no sweep: must be a new folder, or one of the sweep {sweep.name!r}"
            )
        return None
    if before.name != sweep.name:
        raise InputError(
            f"{folder}: holds the sweep {before.name!r}: must be a folder of its own for {sweep.name!r}"
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
            f"{sweep.source}: trial {trial!r} was begun in {folder} with {setting} = {old!r}, and has {new!r} now: "
            "must be a trial of another name, or go to another folder"
        )


def _require_same_data(
    folder: Path, before: Mapping[str, str], now: Mapping[str, str], trial: str, sweep: Sweep
) -> None:
    # What a trial that the sweep no longer has was trained on is not there to be compared.
    kinds = ("training", "evaluation") if trial in sweep.trials else ("evaluation",)
    for kind in kinds:
        if before.get(kind) != now[kind]:
            raise InputError(
                f"{sweep.source}: trial {trial!r} was begun in {folder} on other {kind} data (fingerprint "
                f"{before.get(kind)}, and now {now[kind]}): must be the same data, or go to another folder"
            )


def _is_foreign(path: Path) -> bool:
    """Whether it is nothing that processes which begin the same sweep at this moment have there."""
    return path.name != CLAIM_FILE and not path.name.endswith(PARTIAL_SUFFIX)
