"""Our own format: exported model folders, run folders, and their checkpoints."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlm_jax.config import BertConfig, TrainConfig
from mlm_jax.config.training_record import record_of
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.model_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    StoredModel,
    check_vocabulary,
    flatten_params,
    is_model_folder,
    read_model_architecture,
    read_model_folder,
    read_training_record,
    without_padded_rows,
    write_model_files,
)
from mlm_jax.formats.name_table import Reading
from mlm_jax.formats.tensor_checks import check_weight
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.layers import split_model
from mlm_jax.store.run_folder import (
    CHECKPOINTS_FOLDER,
    is_run_folder,
    load_params,
    read_config,
    run_and_step,
    tokenizer_of_run,
)

NAME = "mlm_jax"
DROPPED_PARTS: Mapping[str, str] = {}


def recognizes(folder: Path) -> bool:
    """Returns True if the folder is an exported model, a run folder, or a checkpoint in one."""
    return is_model_folder(folder) or is_run_folder(run_and_step(folder)[0])


def expressible(config: BertConfig) -> BertConfig:
    """Returns the config unchanged, because the format can express every model."""
    return config


def poolers(config: BertConfig, parts: Collection[str]) -> tuple[bool, ...]:
    """Returns the possible values of `config.pooler`."""
    return (True, False)


def read_architecture(folder: Path) -> StoredModel:
    """Reads everything but the parameters."""
    folder, _ = run_and_step(folder)
    if not is_run_folder(folder):
        return read_model_architecture(folder)
    run, tokenizer = read_config(folder), tokenizer_of_run(folder)
    return StoredModel(run.model, {}, tokenizer, training=record_of(run, _longest_rows(folder, run)))


def read(folder: Path) -> Reading:
    """Reads an exported model, a checkpoint of a run (RUN/checkpoints/STEP), or the newest intact one of a run.

    Raises:
        InputError: a file is missing or damaged, a tensor is missing, unknown, of the wrong shape or not finite, or
            the run has no checkpoint.
    """
    folder, step = run_and_step(folder)
    if not is_run_folder(folder):
        model = read_model_folder(folder)
        return Reading(model, _paths(model.params), {}, [], [folder / WEIGHTS_FILE])
    run = read_config(folder)
    config = run.model
    _, shapes = split_model(abstract_masked_lm(config))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    tokenizer = tokenizer_of_run(folder)
    step, restored = load_params(folder, config, tokenizer, abstract, step)
    params = jax.tree.map(np.asarray, restored)
    # The others may be written or removed meanwhile.
    checkpoint = folder / CHECKPOINTS_FOLDER / str(step)
    for path, leaf in flatten_params(params).items():
        check_weight(checkpoint, path, leaf)
    config, params = without_padded_rows(config, params)
    check_vocabulary(folder, config, tokenizer)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    model = StoredModel(config, params, tokenizer, training=record_of(run, _longest_rows(folder, run)))
    return Reading(model, _paths(params), {}, [], files)


def _paths(params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {path: (path,) for path in flatten_params(params)}


def _longest_rows(folder: Path, run: TrainConfig, later: frozenset[Path] = frozenset()) -> int | None:
    """Returns the length of the longest rows that the model of a run was trained with, or None if unknown.

    `later` are the runs that start from this one, because folders may have been renamed into a circle.
    """
    if run.init_from is None:
        return run.data.sequence_length
    source, runs = run_and_step(Path(run.init_from))[0], later | {folder.resolve()}
    if source.resolve() in runs:
        return None
    if is_run_folder(source):
        before = _longest_rows(source, read_config(source), runs)
    else:
        record = read_json_object(source / CONFIG_FILE).get("training") if is_model_folder(source) else None
        known = read_training_record(source / CONFIG_FILE, record)
        before = known.longest_rows if known is not None else None
    return None if before is None else max(before, run.data.sequence_length)


def write(model: StoredModel, folder: Path) -> int:
    """Writes the files of an exported model into an empty folder and returns the number of tensors."""
    return write_model_files(folder, model)
