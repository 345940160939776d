"""What a sweep is: named configs that differ in what is studied, and the checks that make them comparable. No jax."""

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

# It is a folder's name, on any file system.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=+-]*")
# What the folder of a sweep holds beside its trials: claim, sweep.json, report.md, losses.png, ….
_TAKEN = re.compile(r"claim|.*\.(json|md|csv|html|png)", re.IGNORECASE)

OF_NO_RESULT = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "compilation_cache_dir",
    "max_nonfinite_steps",
    "data.prefetch_batches",
    "distributed.timeout_seconds",
)
"""Settings on which what a trial learns does not depend."""


@dataclass(frozen=True)
class Sweep:
    """Trials to be compared with the first of them, the baseline."""

    name: str
    """That of its file."""
    source: str
    """The file, as it was given."""
    description: str
    """The first paragraph of the file's docstring, in one line."""
    trials: Mapping[str, TrainConfig]
    """In the order of the file; each with its name."""

    @property
    def baseline(self) -> str:
        """The trial that the others are compared with."""
        return next(iter(self.trials))


@dataclass(frozen=True)
class Run:
    """One trial with one seed."""

    trial: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """As a user reads it, and below the sweep's folder its own."""
        return f"{self.trial}/seed_{self.seed}"


def load_sweep(path: str | Path) -> Sweep:
    """The sweep of a Python file, from its `trials() -> dict[str, TrainConfig]`.

    `output_dir` and `seed` of the trials are left to whoever runs them.

    Raises:
        InputError: the file cannot be read, a trial sets what no trial may, two are the same, or they would not be
            evaluated alike. Says which, where, and what would be right.
    """
    path = Path(path)
    trials, docstring = call_in_file(path, "trials", "dict[str, TrainConfig]")
    # Of the rest a report has its own: the command, and what came out this time.
    description = " ".join(docstring.partition("\n\n")[0].split())
    if not isinstance(trials, dict) or not trials:
        raise InputError(
            f"{path}: trials() gave {type(trials).__name__}: must give a dict with a trial in it"
        )
    for name, config in trials.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or _TAKEN.fullmatch(name):
            raise InputError(
                f"{path}: trial {name!r}: must be named by letters, digits and any of _ . = + -, and as no file of a "
                "sweep's folder, since it names one beside them"
            )
        if not isinstance(config, TrainConfig):
            raise InputError(f"{path}: trial {name!r} is {type(config).__name__}: must be a TrainConfig")
        if config.distributed.coordinator is not None:
            raise InputError(
                f"{path}: trial {name!r} has distributed.coordinator = {config.distributed.coordinator!r}: must be "
                "None, because each run of a sweep is trained by one process"
            )
        if config.seed:
            raise InputError(f"{path}: trial {name!r} has seed = {config.seed}: must be left to --seeds")
    sweep = Sweep(
        path.stem, str(path), description, {name: _unplaced(config) for name, config in trials.items()}
    )
    _require_different(sweep)
    require_comparable(sweep)
    return sweep


def _unplaced(config: TrainConfig) -> TrainConfig:
    return replace(config, output_dir="", seed=0)


def runs_of(sweep: Sweep, folder: Path, num_seeds: int) -> list[Run]:
    """All runs, seed by seed, so that after a while every trial has as many as another.

    Raises:
        InputError: there are no seeds.
    """
    if num_seeds < 1:
        raise InputError(f"--seeds {num_seeds}: must be at least 1")
    return [
        Run(trial, seed, replace(config, seed=seed, output_dir=str(folder / trial / f"seed_{seed}")))
        for seed in range(num_seeds)
        for trial, config in sweep.trials.items()
    ]


def share_of(runs: list[Run], index: int, count: int) -> list[Run]:
    """Those of process `index` of `count`: no run is in two shares, and together they are all.

    Raises:
        InputError: there is no such share.
    """
    if count < 1 or not 0 <= index < count:
        raise InputError(f"--index {index} --count {count}: must be 0 <= index < count")
    # As one deals cards, and from there one further: else, of four trials and four shares, each share would be a trial.
    turn = lcm(count, len({run.trial for run in runs}))
    return [run for number, run in enumerate(runs) if (number + number // turn) % count == index]


def changed_results(config: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Name to both values, of every setting that is not the same and may change what is learnt."""
    changes = changed_settings(config, other)
    return {name: values for name, values in changes.items() if name not in OF_NO_RESULT}


def describe_trial(sweep: Sweep, trial: str) -> str:
    """What a trial has that the baseline has not, in one line."""
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
                "that changes what is learnt"
            )


def require_comparable(sweep: Sweep) -> None:
    """InputError where the trials would not all be evaluated on the same rows with the same masks."""
    wanted = _evaluated(sweep.trials[sweep.baseline])
    if not wanted["data.eval_path"]:
        raise InputError(
            f"{sweep.source}: trial {sweep.baseline!r} has no data.eval_path: must name what all are evaluated on"
        )
    for name, config in sweep.trials.items():
        for setting, value in _evaluated(config).items():
            if value != wanted[setting]:
                raise InputError(
                    f"{sweep.source}: trial {name!r} is evaluated with {setting} = {value!r}: must be "
                    f"{wanted[setting]!r}, as in {sweep.baseline!r}, to be compared with it"
                )


def _evaluated(config: TrainConfig) -> dict[str, Any]:
    """All that the evaluation of a run depends on beside its parameters."""
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
