"""Files of a sweep: sweep.json for its trials, and outcome.json for each run that has ended.

SWEEP/sweep.json  TRIAL/seed_S/outcome.json
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mlm_jax.errors import InputError
from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.json_files import json_text, read_json_object

SWEEP_FILE = "sweep.json"
OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep; the fields are the keys of sweep.json."""

    name: str
    source: str
    """Path of its Python file."""
    description: str
    baseline: str
    """Name of the trial with which the others are compared."""
    seeds: list[int]
    trials: dict[str, dict[str, Any]]
    """Config of each trial, as nested dicts."""
    data: dict[str, dict[str, str]]
    """Fingerprints of the training and evaluation data of each trial."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a run; the fields are the keys of outcome.json."""

    status: Literal["finished", "failed"]
    error: str | None
    """One line."""
    step: int
    seconds: float | None
    """Time since the last start, including compilation and evaluations; None if no step was left."""
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]


def read_sweep_record(folder: Path) -> SweepRecord | None:
    """Returns the content of sweep.json, or None if it is missing. Raises InputError if it is damaged."""
    file = folder / SWEEP_FILE
    if not file.is_file():
        return None
    tree = read_json_object(file)
    texts = dict.fromkeys(("name", "source", "description", "baseline"), str)
    kinds: dict[str, type] = {**texts, "seeds": list, "trials": dict, "data": dict}
    for key, kind in kinds.items():
        if not isinstance(tree.get(key), kind):
            raise InputError(f"{file}: {key} = {tree.get(key)!r}: must be a JSON {_JSON_NAMES[kind]}")
    record = SweepRecord(**{key: tree[key] for key in kinds})
    if record.baseline not in record.trials:
        raise InputError(f"{file}: baseline = {record.baseline!r}: must be one of {', '.join(record.trials)}")
    if not record.seeds or not all(type(seed) is int for seed in record.seeds):
        raise InputError(f"{file}: seeds = {record.seeds!r}: must be integers, at least one")
    if not all(isinstance(settings, dict) for settings in record.trials.values()):
        raise InputError(f"{file}: trials: each trial must be a JSON object of settings")
    if record.data.keys() != record.trials.keys():
        raise InputError(f"{file}: data: must have an entry for every trial")
    return record


_JSON_NAMES: dict[type, str] = {str: "string", list: "array", dict: "object"}


def write_sweep_record(folder: Path, record: SweepRecord) -> None:
    """Writes sweep.json atomically."""
    write_atomically(folder / SWEEP_FILE, _json(record))


def read_outcome(run_folder: Path) -> Outcome | None:
    """Returns the outcome of a run, or None if it has not ended. Raises InputError if the file is damaged."""
    file = run_folder / OUTCOME_FILE
    if not file.is_file():
        return None
    tree = read_json_object(file)
    ended = tree.get("status") in ("finished", "failed")
    timed = tree.get("seconds", "") is None or type(tree.get("seconds")) in (int, float)
    documented = isinstance(tree.get("machine"), dict) and isinstance(tree.get("versions"), dict)
    if not (ended and timed and documented and type(tree.get("step")) is int) or tree.keys() != _OUTCOME_KEYS:
        raise InputError(f"{file}: must contain the outcome of a run; delete it to train this run again")
    return Outcome(**tree)


_OUTCOME_KEYS = {field.name for field in fields(Outcome)}


def write_outcome(run_folder: Path, outcome: Outcome) -> None:
    """Writes outcome.json atomically."""
    run_folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run_folder / OUTCOME_FILE, _json(outcome))


def forget_outcome(run_folder: Path) -> None:
    """Removes outcome.json, so that the run is trained again."""
    (run_folder / OUTCOME_FILE).unlink(missing_ok=True)


def _json(record: SweepRecord | Outcome) -> bytes:
    return (json_text(asdict(record), indent=2) + "\n").encode()
