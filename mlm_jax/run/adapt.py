"""The config of a run that continues a model, for those who have none of their own."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlm_jax.config import DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.errors import InputError
from mlm_jax.preparation.prepare import EVALUATION_FOLDER, NothingHeldOutError, prepare
from mlm_jax.run.reporting import say
from mlm_jax.shards.folders import LocalFolder, open_folder
from mlm_jax.shards.manifest import MANIFEST_FILE, read_manifest
from mlm_jax.store.hub import find_tokenizer
from mlm_jax.store.loading import load_architecture
from mlm_jax.store.run_folder import is_run_folder, read_config
from mlm_jax.text.tokenizer import Tokenizer

# As is usual for continued pretraining: the rate of fine-tuning, a short warm-up, and a few passes over the text.
_LEARNING_RATE = 5e-5
_WARMUP_SHARE = 0.06
_PASSES = 3
_BATCH_SIZE = 32
_LONGEST_ROWS = 256
_HELD_OUT = 0.05


def adapting_config(model: str, output_dir: str, max_sequence_length: int | None = None) -> TrainConfig:
    """Returns the config that continues `model`, in the shape and with the conventions and dropout of the model.

    Rows have at most 256 tokens, and no more than the model takes and was trained with, as far as that is known. With a
    `max_sequence_length` above the model's, they have as many, because shorter rows train no new position.

    If `output_dir` is the folder of a run that has started, this is the config of that run, which needs no source.

    Raises:
        InputError: there is no such model, its config is not supported, or `max_sequence_length` is invalid.
    """
    started = Path(output_dir)
    if is_run_folder(started):
        return read_config(started)
    found = load_architecture(model)
    # A pooler is not trained, and weight decay would shrink it.
    shape, longest, packing = replace(found.config, pooler=False), _LONGEST_ROWS, DataConfig().packing
    if found.training is not None:
        # Results beyond the length that a model was trained with are unreliable.
        longest, packing = found.training.longest_rows or longest, found.training.packing
    length = min(longest, _LONGEST_ROWS, shape.max_sequence_length)
    if max_sequence_length is not None:
        is_longer = max_sequence_length > shape.max_sequence_length
        length = max_sequence_length if is_longer else min(length, max_sequence_length)
        shape = replace(shape, max_sequence_length=max_sequence_length)
    return TrainConfig(
        model=shape,
        data=DataConfig(sequence_length=length, packing=packing),
        optimizer=OptimizerConfig(learning_rate=_LEARNING_RATE),
        batch_size=_BATCH_SIZE,
        init_from=model,
        output_dir=output_dir,
    )


def prepare_texts(texts: Sequence[str], config: TrainConfig) -> None:
    """Prepares text files into `config.data.path`, and holds out a share of the documents for evaluation.

    Of a few documents, none may be held out; the run then has no evaluation. Does nothing if the folder is complete.

    Raises:
        InputError: the text is unusable, or the folder has been prepared from other text.
    """
    # A run that has started has the tokenizer, and no longer needs its source.
    source = config.output_dir if is_run_folder(Path(config.output_dir)) else config.init_from
    assert source is not None, "a run without a config continues a model"
    folder, prepare_with = config.data.path, partial(prepare, texts, Tokenizer.load(find_tokenizer(source)))
    if _is_undivided(Path(folder)):
        preparation = prepare_with(folder)
    else:
        try:
            preparation = prepare_with(folder, eval_share=_HELD_OUT)
        except NothingHeldOutError:
            preparation = prepare_with(folder)
            say(f"warning: {folder}: too few documents to hold some out: the run has no evaluation")
    say(f"{folder}: {preparation.summary()}")
    for warning in preparation.warnings:
        say(f"warning: {folder}: {warning}")


def _is_undivided(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file() and "eval_share" not in read_manifest(LocalFolder(folder))[
        "settings"
    ]


def completed(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Returns the config with what depends on the data and on other settings, unless it is `given`; and prints it.

    The number of steps is that of three passes over the data, the warm-up 6 % of it, and the evaluation data are the
    documents that `mlm-jax prepare --eval-share` held out.

    Raises:
        InputError: there are no data at `config.data.path`.
    """
    if not config.data.path:
        raise InputError(
            "data.path: must be given, the folder of prepared text; `mlm-jax prepare` makes one, or --texts on the way"
        )
    if is_run_folder(Path(config.output_dir)):
        return config
    held_out = Path(config.data.path) / EVALUATION_FOLDER
    if "data.eval_path" not in given and held_out.is_dir():
        config = replace(config, data=replace(config.data, eval_path=str(held_out)))
    totals = read_manifest(open_folder(config.data.path))["totals"]
    rows = totals["tokens"] / (config.data.sequence_length - 2)
    if config.data.packing == "document":
        # Most documents fit into a row, or fill several.
        rows = max(rows, totals["documents"])
    steps_of_pass = rows / config.batch_size
    if "num_steps" not in given:
        config = replace(config, num_steps=max(1, math.ceil(_PASSES * steps_of_pass)))
    if "optimizer.warmup_steps" not in given:
        # The learning rate of its first step is 0, so a single step has none.
        warmup = min(math.ceil(_WARMUP_SHARE * config.num_steps), config.num_steps - 1)
        config = replace(config, optimizer=replace(config.optimizer, warmup_steps=warmup))
    data, optimizer, passes = config.data, config.optimizer, config.num_steps / steps_of_pass
    say(
        f"continues {config.init_from} on {data.path} ({totals['tokens']:,} tokens): {config.num_steps:,} steps, about "
        f"{passes:{',.1f' if passes >= 1 else '.1g'}} passes; rows of {data.sequence_length} tokens, batches of "
        f"{config.batch_size}, learning rate {optimizer.learning_rate:g} after {optimizer.warmup_steps:,} steps of "
        f"warm-up; evaluation on {data.eval_path or 'nothing'}"
    )
    return config
