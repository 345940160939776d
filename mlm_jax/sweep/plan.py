"""A sweep: named configs to compare, and the checks that make them comparable. Does not import jax."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import lcm
from pathlib import Path
from typing import Any

from mlm_jax.config import TrainConfig
from mlm_jax.config.files import call_in_file
from mlm_jax.config.settings import changed_settings
from mlm_jax.errors import InputError

# A name that is valid for folders on any file system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]*")
# Other files in the folder of a sweep: lock, sweep.json, report.md, losses.png, ….
_TAKEN = re.compile(r"lock|.*\.(json|md|csv|html|png)", re.IGNORECASE)

RESULT_NEUTRAL_SETTINGS = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "compilation_cache_dir",
    "max_nonfinite_steps",
    "data.prefetch_batches",
    "distributed.timeout_seconds",
)
"""Settings that do not affect the results of a trial."""


@dataclass(frozen=True)
class Sweep:
    """Trials to compare with the first one, the baseline."""

    name: str
    """Name of the file, without its suffix."""
    source: str
    """Path of the file, as given."""
    description: str
    """First paragraph of the file's docstring, on one line."""
    trials: Mapping[str, TrainConfig]
    """Config of each trial by name, in the order of the file."""

    @property
    def baseline(self) -> str:
        """Name of the trial with which the others are compared."""
        return next(iter(self.trials))


@dataclass(frozen=True)
class Run:
    """A trial with one seed."""

    trial: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Name shown to users, and path of the run within the sweep's folder."""
        return f"{self.trial}/seed_{self.seed}"


def load_sweep(path: str | Path) -> Sweep:
    """Returns the sweep defined by `trials() -> dict[str, TrainConfig]` in a Python file.

    `output_dir` and `seed` of the trials are set when they are run.

    Raises:
        InputError: the file cannot be read, a trial has a setting that is not allowed, two trials are equal, or they
            would be evaluated differently.
    """
    path = Path(path)
    trials, docstring = call_in_file(path, "trials", "dict[str, TrainConfig]")
    # The rest describes the command and earlier results, which a report takes from the runs themselves.
    description = " ".join(docstring.partition("\n\n")[0].split())
    if not isinstance(trials, dict) or not trials:
        raise InputError(
            f"{path}: trials() returned {type(trials).__name__}: must return a dict with at least one trial"
        )
    for name, config in trials.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or _TAKEN.fullmatch(name):
            raise InputError(
                f"{path}: trial {name!r}: the name must consist of letters, digits and _ . = + -, and must not be the "
                "name of a file in the sweep's folder"
            )
        if not isinstance(config, TrainConfig):
            raise InputError(f"{path}: trial {name!r} is {type(config).__name__}: must be a TrainConfig")
        if config.distributed.coordinator is not None:
            raise InputError(
                f"{path}: trial {name!r} has distributed.coordinator = {config.distributed.coordinator!r}: must be "
                "None, because one process trains each run of a sweep"
            )
        if config.seed:
            raise InputError(
                f"{path}: trial {name!r} has seed = {config.seed}: must be unset, because --seeds sets it"
            )
    sweep = Sweep(
        path.stem, str(path), description, {name: _unplaced(config) for name, config in trials.items()}
    )
    _require_different(sweep)
    require_comparable(sweep)
    return sweep


def _unplaced(config: TrainConfig) -> TrainConfig:
    return replace(config, output_dir="", seed=0)


def runs_of(sweep: Sweep, folder: Path, num_seeds: int) -> list[Run]:
    """Returns all runs, seed by seed, so that trials progress evenly.

    Raises:
        InputError: `num_seeds` is less than 1.
    """
    if num_seeds < 1:
        raise InputError(f"--seeds {num_seeds}: must be at least 1")
    return [
        Run(trial, seed, replace(config, seed=seed, output_dir=str(folder / trial / f"seed_{seed}")))
        for seed in range(num_seeds)
        for trial, config in sweep.trials.items()
    ]


def share_of(runs: list[Run], index: int, count: int) -> list[Run]:
    """Returns the runs of job `index` of `count`; the shares of all jobs are disjoint and cover all runs.

    Raises:
        InputError: `index` or `count` is out of range.
    """
    if count < 1 or not 0 <= index < count:
        raise InputError(f"--index {index} --count {count}: must be 0 <= index < count")
    # Dealt in turn, shifted by one in each round: otherwise, with four trials and four jobs, each job would train a
    # single trial.
    turn = lcm(count, len({run.trial for run in runs}))
    return [run for number, run in enumerate(runs) if (number + number // turn) % count == index]


def changed_results(config: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Returns both values of every setting that differs and may affect results."""
    changes = changed_settings(config, other)
    return {name: values for name, values in changes.items() if name not in RESULT_NEUTRAL_SETTINGS}


def describe_trial(sweep: Sweep, trial: str) -> str:
    """Returns the settings of a trial that differ from the baseline, on one line."""
    changes = changed_settings(sweep.trials[sweep.baseline], sweep.trials[trial])
    return ", ".join(f"{name} = {value!r}" for name, (_, value) in changes.items()) or "the baseline"


def _require_different(sweep: Sweep) -> None:
    for (name, config), (other_name, other) in combinations(sweep.trials.items(), 2):
        if name.casefold() == other_name.casefold():
            raise InputError(
                f"{sweep.source}: trials {name!r} and {other_name!r}: must differ in more than capital letters"
            )
        if not changed_results(config, other):
            raise InputError(
                f"{sweep.source}: trials {name!r} and {other_name!r} have the same config: must differ in a setting "
                "that affects what is learned"
            )


def require_comparable(sweep: Sweep) -> None:
    """Raises InputError unless all trials are evaluated on the same rows with the same masks."""
    wanted = _evaluated(sweep.trials[sweep.baseline])
    if not wanted["data.eval_path"]:
        raise InputError(
            f"{sweep.source}: trial {sweep.baseline!r} has no data.eval_path: must name the data for all trials"
        )
    for name, config in sweep.trials.items():
        for setting, value in _evaluated(config).items():
            if value != wanted[setting]:
                raise InputError(
                    f"{sweep.source}: trial {name!r} is evaluated with {setting} = {value!r}: must be "
                    f"{wanted[setting]!r}, as in {sweep.baseline!r}, to be compared with it"
                )


def _evaluated(config: TrainConfig) -> dict[str, Any]:
    """Returns everything that the evaluation of a run depends on, except its parameters."""
    data, rows = config.data, None
    if config.eval_batches is not None:
        rows = config.eval_batches * (config.batch_size // config.accumulation_steps)
    return {
        "data.eval_path": data.eval_path,
        "data.eval_packing, or data.packing,": data.eval_packing or data.packing,
        "data.sequence_length": data.sequence_length,
        "eval_batches * batch_size / accumulation_steps": rows,
        **{f"eval_masking.{name}": value for name, value in asdict(config.eval_masking).items()},
    }
