"""Layout of a run folder, and reading a run back from it.

RUN/config.json  metrics.jsonl  eval.jsonl  tensorboard/  loss.png  tokenizer/  checkpoints/STEP/
"""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlm_jax.config import BertConfig, TrainConfig
from mlm_jax.config.files import read_json_config
from mlm_jax.config.model import WEIGHT_COMPATIBLE_SETTINGS
from mlm_jax.config.settings import changed_settings, to_json
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.json_files import read_json_object
from mlm_jax.files.targets import check_target, require_nothing_else
from mlm_jax.store.checkpoint import Checkpointer, step_of
from mlm_jax.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
TOKENIZER_FOLDER = "tokenizer"
CHECKPOINTS_FOLDER = "checkpoints"
_SUBFOLDERS = (TOKENIZER_FOLDER, CHECKPOINTS_FOLDER, "tensorboard")


def check_run_target(folder: str | Path) -> None:
    """Checks that a run can be written into `folder`, or resumed in it. Writes nothing.

    Raises:
        InputError: `folder` has the files of something else, such as prepared data or a model, is inside a folder of
            another run, or cannot be a folder.
    """
    check_target(folder)
    place = Path(os.path.realpath(folder))
    for run in place.parents:
        if place.relative_to(run).parts[0] in _SUBFOLDERS and is_run_folder(run):
            raise InputError(f"{folder}: is inside the run {run}; choose another folder")
    settings = read_json_object(Path(folder) / CONFIG_FILE)
    require_nothing_else(Path(folder), own=[CONFIG_FILE] if _is_of_run(settings) else [])


def write_run(folder: Path, config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Writes config.json and tokenizer/, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_atomically(folder / CONFIG_FILE, to_json(_of_any_process(config)).encode())


def is_run_folder(folder: Path) -> bool:
    """Returns True if the folder has the config.json of a run, with or without a checkpoint."""
    try:
        settings = read_json_object(folder / CONFIG_FILE)
    except (OSError, InputError):
        return False
    return _is_of_run(settings)


def _is_of_run(settings: dict[str, Any]) -> bool:
    return {"output_dir", "optimizer"} <= set(settings)


def run_and_step(folder: Path) -> tuple[Path, int | None]:
    """Splits RUN/checkpoints/STEP into the run folder and the step; any other folder is returned with None."""
    place = folder if folder.parent.name == CHECKPOINTS_FOLDER else folder.absolute()
    run = place.parent.parent
    step = step_of(place)
    if step is not None and place.parent.name == CHECKPOINTS_FOLDER and is_run_folder(run):
        return run, step
    return folder, None


def read_config(folder: Path) -> TrainConfig:
    """Returns the config of a run. Raises InputError if the folder is not a run folder or its config is invalid."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: not a run folder: no {CONFIG_FILE}; mlm-jax train creates run folders")
    return read_json_config(file)


def config_changes(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Returns `optimizer.learning_rate: 0.001 → 0.0005` for every setting that differs."""
    changes = changed_settings(_of_any_process(before), _of_any_process(now))
    return [f"{name}: {old} → {new}" for name, (old, new) in changes.items()]


def _of_any_process(config: TrainConfig) -> TrainConfig:
    """Returns the config without settings of a particular process, so that config.json can be used anywhere."""
    elsewhere = replace(config.distributed, coordinator=None, num_processes=None, process_id=None)
    return replace(config, distributed=elsewhere)


def load_params(
    folder: Path, model: BertConfig, tokenizer: Tokenizer, abstract_params: Any, step: int | None = None
) -> tuple[int, Any]:
    """Returns step and parameters of a checkpoint of a run, by default the newest intact one.

    The parameters have the shardings of `abstract_params`.

    Raises:
        InputError: the run has no checkpoint, or no intact one of `step`, its parameters have different names or
            shapes, or it was saved with another tokenizer, activation, norm, … than that of `tokenizer` and `model`,
            so that a file of the run was edited.
    """
    with Checkpointer(folder / CHECKPOINTS_FOLDER) as checkpointer:
        restored = checkpointer.restore_part(
            "params", abstract_params, _description(model, tokenizer), step=step
        )
    if restored is None:
        raise _no_checkpoint(folder)
    return restored


def tokenizer_of_run(folder: Path) -> Tokenizer:
    """Returns the tokenizer of a run. Raises InputError if there is none, or no checkpoint yet."""
    if not (folder / TOKENIZER_FOLDER).is_dir() and not (folder / CHECKPOINTS_FOLDER).is_dir():
        raise _no_checkpoint(folder)
    return Tokenizer.load(folder / TOKENIZER_FOLDER)


def _no_checkpoint(folder: Path) -> InputError:
    return InputError(f"{folder}: no checkpoint in {CHECKPOINTS_FOLDER}/; train the run first")


def verify_checkpoints(folder: Path, step: int | None = None) -> list[int]:
    """Reads all checkpoints of a run, or that of `step`, and returns their steps.

    Raises:
        InputError: a checkpoint is damaged, there is none, or config.json or tokenizer/ are not those of a checkpoint.
    """
    described = _description(read_config(folder).model, tokenizer_of_run(folder))
    verified = []
    with Checkpointer(folder / CHECKPOINTS_FOLDER) as checkpointer:
        for number in checkpointer.steps() if step is None else [step]:
            try:
                checkpointer.verify(number, described)
            except InputError:
                # A run that is being trained removes old checkpoints.
                if step is None and number not in checkpointer.steps():
                    continue
                raise
            verified.append(number)
    if not verified:
        raise _no_checkpoint(folder)
    return verified


def _description(model: BertConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what the description of a checkpoint says about the model and its tokenizer."""
    settings = {
        name: value for name, value in asdict(model).items() if name not in WEIGHT_COMPATIBLE_SETTINGS
    }
    return {"model": settings, "tokenizer": {"fingerprint": tokenizer.fingerprint}}
