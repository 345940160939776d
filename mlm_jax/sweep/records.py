"""What a sweep writes of itself: sweep.json of its trials, and outcome.json of each run that ended.

SWEEP/sweep.json  TRIAL/seed_S/outcome.json
                  TRIAL/seed_S/starts         while it is trained, or if its process died: the step of each start
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mlm_jax.errors import InputError
from mlm_jax.files import write_atomically

SWEEP_FILE = "sweep.json"
OUTCOME_FILE = "outcome.json"
_STARTS_FILE = "starts"


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep as its folder has it; the fields are the keys of sweep.json."""

    name: str
    source: str
    """The Python file that it is made by."""
    description: str
    baseline: str
    """The trial that the others are compared with."""
    seeds: list[int]
    trials: dict[str, dict[str, Any]]
    """The config of each, as nested dicts."""
    data: dict[str, dict[str, str]]
    """Fingerprints of the training and evaluation data of each."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended; the fields are the keys of outcome.json."""

    status: Literal["finished", "failed"]
    error: str | None
    """One line."""
    step: int
    seconds: float | None
    """Of the start that came to this end, with compilation and evaluations; None where it found all steps taken."""
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]


def read_sweep_record(folder: Path) -> SweepRecord | None:
    """What sweep.json says, or None where there is none. InputError where the file is damaged."""
    file = folder / SWEEP_FILE
    if not file.is_file():
        return None
    tree = read_object(file)
    texts = dict.fromkeys(("name", "source", "description", "baseline"), str)
    kinds: dict[str, type] = {**texts, "seeds": list, "trials": dict, "data": dict}
    for key, kind in kinds.items():
        if not isinstance(tree.get(key), kind):
            raise InputError(f"{file}: {key} = {tree.get(key)!r}: must be a JSON {_JSON_NAMES[kind]}")
    record = SweepRecord(**{key: tree[key] for key in kinds})
    if record.baseline not in record.trials:
        raise InputError(f"{file}: baseline = {record.baseline!r}: must be one of {', '.join(record.trials)}")
    if not record.seeds or not all(type(seed) is int for seed in record.seeds):
        raise InputError(f"{file}: seeds = {record.seeds!r}: must be whole numbers, at least one")
    if not all(isinstance(settings, dict) for settings in record.trials.values()):
        raise InputError(f"{file}: trials: each must be a JSON object of settings")
    if record.data.keys() != record.trials.keys():
        raise InputError(f"{file}: data: must be there for every trial")
    return record


_JSON_NAMES: dict[type, str] = {str: "string", list: "array", dict: "object"}


def write_sweep_record(folder: Path, record: SweepRecord) -> None:
    """Whole or not at all."""
    write_atomically(folder / SWEEP_FILE, _json(record))


def read_outcome(run_folder: Path) -> Outcome | None:
    """How the run ended, or None where it has not. InputError where the file is damaged."""
    file = run_folder / OUTCOME_FILE
    if not file.is_file():
        return None
    tree = read_object(file)
    ended = tree.get("status") in ("finished", "failed")
    timed = tree.get("seconds", "") is None or type(tree.get("seconds")) in (int, float)
    told = isinstance(tree.get("machine"), dict) and isinstance(tree.get("versions"), dict)
    if not (ended and timed and told and type(tree.get("step")) is int) or tree.keys() != _OUTCOME_KEYS:
        raise InputError(f"{file}: must hold the outcome of a run; delete it to run this one again")
    return Outcome(**tree)


_OUTCOME_KEYS = {field.name for field in fields(Outcome)}


def write_outcome(run_folder: Path, outcome: Outcome) -> None:
    """Whole or not at all."""
    run_folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run_folder / OUTCOME_FILE, _json(outcome))


def forget_outcome(run_folder: Path) -> None:
    """Of a run that is trained again."""
    (run_folder / OUTCOME_FILE).unlink(missing_ok=True)


def note_start(run_folder: Path, step: int) -> None:
    """A process is about to train the run, of which `step` steps are recorded."""
    run_folder.mkdir(parents=True, exist_ok=True)
    with (run_folder / _STARTS_FILE).open("a") as file:
        file.write(f"{step}\n")


def count_deaths(run_folder: Path, step: int) -> int:
    """How many processes have died over the run without a word, and with no step beyond `step` recorded."""
    file = run_folder / _STARTS_FILE
    return file.read_text().splitlines().count(f"{step}") if file.is_file() else 0


def forget_starts(run_folder: Path) -> None:
    """Of a run whose process has come to speak of its end."""
    (run_folder / _STARTS_FILE).unlink(missing_ok=True)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. InputError where the file holds something else."""
    try:
        tree = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{file}: must be a JSON object")
    return tree


def _json(record: SweepRecord | Outcome) -> bytes:
    return (json.dumps(asdict(record), indent=2) + "\n").encode()
