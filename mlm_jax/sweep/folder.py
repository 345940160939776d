"""What lies where in a sweep's folder, and who trains which run of it.

SWEEP/sweep.json  TRIAL/seed_S/ a run folder, with outcome.json and, while it is trained, a lock on claim
A lock on SWEEP/claim is held by whoever writes what is the whole sweep's.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlm_jax.config import TrainConfig
from mlm_jax.data.files import PARTIAL_SUFFIX, write_atomically
from mlm_jax.errors import InputError
from mlm_jax.settings import from_json
from mlm_jax.sweep.plan import Sweep, changed_settings

SWEEP_FILE = "sweep.json"
OUTCOME_FILE = "outcome.json"
_CLAIM_FILE = "claim"

# They may change between one start of a trial and the next: what it learns does not depend on them.
_OF_NO_RESULT = frozenset(
    {
        *(
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "compilation_cache_dir",
            "max_nonfinite_steps",
        ),
        *("data.prefetch_batches", "distributed.timeout_seconds"),
    }
)


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


def read_outcome(run_folder: Path) -> Outcome | None:
    """How the run ended, or None where it has not. InputError where the file is damaged."""
    path = run_folder / OUTCOME_FILE
    try:
        return Outcome(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it, and the run is looked at again") from error


def write_outcome(run_folder: Path, outcome: Outcome) -> None:
    """Whole or not at all."""
    run_folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run_folder / OUTCOME_FILE, (json.dumps(asdict(outcome), indent=2) + "\n").encode())


def forget_outcome(run_folder: Path) -> None:
    """Of a run that is trained again."""
    (run_folder / OUTCOME_FILE).unlink(missing_ok=True)


def begin(folder: Path, sweep: Sweep, num_seeds: int) -> None:
    """Write sweep.json, or see that what is there is the same sweep; trials and seeds may have come since.

    Trials that the file of the sweep has no more stay in it after those that it has, if a run of theirs was begun.

    Raises:
        InputError: the folder holds something else, another sweep, or a trial that was begun with another config.
    """
    check(folder, sweep)
    with locked(folder):
        num_seeds_before, trials_before = check(folder, sweep)
        trials = {name: asdict(config) for name, config in sweep.trials.items()}
        begun = {name: tree for name, tree in trials_before.items() if (folder / name).is_dir()}
        tree = {
            "name": sweep.name,
            "source": sweep.source,
            "description": sweep.description,
            "baseline": sweep.baseline,
            "seeds": list(range(max(num_seeds, num_seeds_before))),
            "trials": trials | {name: tree for name, tree in begun.items() if name not in trials},
        }
        write_atomically(folder / SWEEP_FILE, (json.dumps(tree, indent=2) + "\n").encode())


def check(folder: Path, sweep: Sweep) -> tuple[int, dict[str, Any]]:
    """How many seeds the folder has of that sweep, and the settings of its trials; nothing where it is new.

    Raises what `begin` raises; writes nothing.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
            raise InputError(
                f"{folder}: holds no sweep: must be a new folder, or one of the sweep {sweep.name!r}"
            )
        return 0, {}
    try:
        tree = json.loads(path.read_bytes())
        name, seeds, trials = tree["name"], tree["seeds"], tree["trials"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); another folder is needed") from error
    if name != sweep.name:
        raise InputError(
            f"{folder}: holds the sweep {name!r}: must be a folder of its own for {sweep.name!r}"
        )
    for trial in trials.keys() & sweep.trials.keys():
        before = from_json(TrainConfig, json.dumps(trials[trial]))
        for setting, (old, new) in changed_settings(before, sweep.trials[trial]).items():
            if setting in _OF_NO_RESULT:
                continue
            raise InputError(
                f"{sweep.source}: trial {trial!r} was begun in {folder} with {setting} = {old!r}, and has {new!r} now: "
                "must be a trial of another name, or go to another folder"
            )
    return len(seeds), trials


def _is_foreign(path: Path) -> bool:
    """Whether it is nothing that processes which begin the same sweep at this moment have there."""
    return path.name != _CLAIM_FILE and not path.name.endswith(PARTIAL_SUFFIX)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process is in such a block of the same folder. Raises what `claimed` raises."""
    with _lock(folder, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def claimed(run_folder: Path) -> Iterator[bool]:
    """Whether the run is this process's for the block, and no other's: by a file lock, which ends with the process.

    Raises:
        InputError: the file system has no locks.
    """
    with _lock(run_folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as mine:
        yield mine


@contextlib.contextmanager
def _lock(folder: Path, kind: int) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _CLAIM_FILE).open("wb") as file:
        try:
            fcntl.flock(file, kind)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise InputError(
                f"{folder}: {os.strerror(error.errno or 0)}: must be on a file system that locks files"
            ) from error
        yield True
