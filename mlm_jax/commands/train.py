"""`mlm-jax train`: train a masked language model, or resume a run."""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlm_jax.commands.config_flags import parse_config_and_flags
from mlm_jax.commands.flags import build
from mlm_jax.config import DistributedConfig, TrainConfig
from mlm_jax.errors import EXIT_STOPPED, InputError
from mlm_jax.run.host_memory import keep_freed_memory

ABOUT = (
    "Train a masked language model, or continue one on more text (--from MODEL, also called --init-from). If the run "
    "folder has checkpoints, resume from the newest one."
)

_FROM_SOURCE = ("dropout_rate", "attention_dropout_rate", "initializer_stddev")


@dataclass(frozen=True)
class Flags:
    """Flags of this command besides the settings of a run."""

    from_step: int | None = None
    """Resume from the checkpoint of this step; later ones are renamed to STEP.superseded."""
    texts: tuple[str, ...] = ()
    """Text to prepare first, into OUTPUT_DIR-data, in place of --data.path.

    Needs --from MODEL without a config, and prepares with the tokenizer of the model. One document in 20 is held out
    for evaluation. `mlm-jax prepare` has more settings."""


def main(arguments: Sequence[str], prog: str) -> int:
    """Reads the config and trains; returns 75 if a signal stopped the run, which the same command then resumes."""
    keep_freed_memory()
    config, flags = parse_config_and_flags(
        one_name(arguments),
        prog,
        ABOUT,
        Flags,
        before_config=_join,
        after_flags=_with_settings_of_source,
        without_config=_continuing_config,
    )
    if flags.texts and config.data.path != prepared_folder(config.output_dir):
        raise InputError(
            "--texts: needs --from MODEL without a config; mlm-jax prepare prepares text for one"
        )
    _join(config.distributed)
    # Imported late, so that a mistyped setting is reported before jax starts.
    from mlm_jax.run.trainer import train

    return 0 if train(config, from_step=flags.from_step).finished else EXIT_STOPPED


def one_name(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with --init-from in place of its other name, --from."""
    return [re.sub("^--from(?==|$)", "--init-from", argument) for argument in arguments]


def _with_settings_of_source(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Returns the config with the dropout and initializer of the model that `--init-from` names.

    A config is written for a run of its own, so what it says about them does not apply to a model that is continued,
    unless a flag or the config names the model, too.
    """
    names = [name for name in _FROM_SOURCE if f"model.{name}" not in given]
    if "init_from" not in given or config.init_from is None or not names:
        return config
    from mlm_jax.run.reporting import say
    from mlm_jax.store.loading import load_config
    from mlm_jax.store.run_folder import is_run_folder, read_config

    # A run that is resumed no longer needs its source.
    started = Path(config.output_dir)
    source = read_config(started).model if is_run_folder(started) else load_config(config.init_from)
    kept = {name: getattr(source, name) for name in names}
    model = replace(config.model, **kept)
    for name, value in kept.items():
        if value != getattr(config.model, name):
            say(
                f"model.{name} = {value}, as in {config.init_from} (the config has {getattr(config.model, name)}); "
                f"--model.{name.replace('_', '-')} sets another"
            )
    return replace(config, model=model)


def prepared_folder(output_dir: str) -> str:
    """Returns the folder of the text that a run prepares. Raises InputError if the run folder has no name to add to."""
    folder = Path(output_dir)
    if folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))
    if not folder.name:
        raise InputError(f"{output_dir}: has no name: --texts needs an --output-dir with one")
    return str(folder.with_name(f"{folder.name}-data"))


def _continuing_config(given: dict[str, Any], flags: dict[str, Any]) -> TrainConfig:
    from mlm_jax.run.adapt import adapting_config, completed, prepare_texts
    from mlm_jax.store.run_folder import check_run_target

    output_dir = given.get("output_dir", TrainConfig().output_dir)
    base = adapting_config(given["init_from"], output_dir, given.get("model.max_sequence_length"))
    if flags.get("texts"):
        if "data.path" in given:
            raise InputError("--texts and --data.path: must be one of them")
        if given.get("distributed.coordinator"):
            raise InputError(
                "--texts: must be prepared before a job of several processes, with mlm-jax prepare"
            )
        given["data.path"] = prepared_folder(output_dir)
    config = build(TrainConfig, given, base)
    # Only now: whatever is wrong with the model, the settings or the run folder is reported before the text is read.
    if flags.get("texts"):
        check_run_target(output_dir)
        prepare_texts(flags["texts"], config)
    return completed(config, given)


def _join(job: DistributedConfig) -> None:
    from mlm_jax.parallel.distributed import join

    join(job)
