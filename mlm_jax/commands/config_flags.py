"""Parses the config of a run from the command line: `CONFIG --optimizer.learning-rate 1e-3`."""

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mlm_jax.commands.flags import HELP_FLAGS, build, flags_of, read, rows_of, wrapped
from mlm_jax.config import DistributedConfig, TrainConfig
from mlm_jax.config.files import load_config, shipped_configs
from mlm_jax.errors import InputError

COMMON = (
    *("output_dir", "init_from", "data.path", "data.eval_path", "data.sequence_length", "data.packing"),
    *("model.vocabulary_size", "model.num_layers", "model.hidden_dim", "model.dropout_rate"),
    *("masking.mask_selection_rate", "masking.unit"),
    *("optimizer.name", "optimizer.learning_rate", "optimizer.schedule", "optimizer.warmup_steps"),
    *("optimizer.weight_decay", "num_steps", "batch_size", "accumulation_steps"),
    *("log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "seed"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "compute.dtype", "compute.remat"),
)
"""Settings that `--help` lists; `--help-all` lists all of them."""

_CONFIG_HELP = (
    "CONFIG is a Python file with config() -> TrainConfig, a run folder, a config.json, or one of {}."
)


def parse_config(arguments: Sequence[str], prog: str) -> TrainConfig:
    """Returns the config named by the first argument, with the settings that follow it.

    Raises:
        InputError: there is no such config, or a setting is unknown (the message has the nearest name) or invalid.
    """
    config, _ = parse_config_and_flags(arguments, prog)
    return config


def parse_config_and_flags(
    arguments: Sequence[str],
    prog: str,
    about: str = "",
    flags_class: type | None = None,
    before_config: Callable[[DistributedConfig], None] | None = None,
    after_flags: Callable[[TrainConfig, Collection[str]], TrainConfig] | None = None,
    without_config: Callable[[dict[str, Any], dict[str, Any]], TrainConfig] | None = None,
) -> tuple[TrainConfig, Any]:
    """Parses `CONFIG [--setting value …]`, where flags of the dataclass `flags_class` may be mixed with the settings.

    With `without_config`, CONFIG may be omitted if --init-from names a model: it is called with the settings and the
    flags of `flags_class` on the command line, and returns the whole config.

    If the command line names a coordinator, `before_config` is called with its `distributed` settings before a Python
    config is run. Calls such as `jax.device_count()` in the config then describe the whole job.

    `after_flags` completes the config of CONFIG, given the names of the settings on the command line.

    Returns:
        The config, and an instance of `flags_class` (or None).

    Raises:
        InputError: as `parse_config`.
    """
    own_flags = flags_of(flags_class) if flags_class is not None else []
    is_config = bool(arguments) and not arguments[0].startswith("-")
    if {*HELP_FLAGS, "--help-all"} & set(arguments):
        config = load_config(arguments[0]) if is_config else TrainConfig()
        about = " ".join(
            [about, _CONFIG_HELP.format(", ".join(name for name in shipped_configs() if "/" not in name))]
        )
        print(f"usage: {prog} {_usage(without_config)} [--setting value …]\n\n{wrapped(about)}\n")
        if own_flags:
            print(f"flags:\n{rows_of(own_flags)}\n")
        print(_all_settings(config) if "--help-all" in arguments else _common_settings(config))
        raise SystemExit(0)
    names_model = any(flag.startswith("--init-from") for flag in arguments)
    if not is_config and (without_config is None or not names_model):
        raise InputError(
            f"the first argument must be a config; usage: {prog} {_usage(without_config)} [--setting value …]; "
            f"{prog} --help lists the settings"
        )
    settings = flags_of(TrainConfig, TrainConfig())
    given = read([*own_flags, *settings], arguments[1:] if is_config else arguments, prog)
    own = {name: given.pop(name) for name in [flag.field for flag in own_flags] if name in given}
    if not is_config and without_config is not None:
        config = without_config(given, own)
    else:
        if before_config is not None and "distributed.coordinator" in given and _runs_code(arguments[0]):
            job = {name: value for name, value in given.items() if name.startswith("distributed.")}
            before_config(build(TrainConfig, job, TrainConfig()).distributed)
        config = build(TrainConfig, given, load_config(arguments[0]))
        if after_flags is not None:
            config = after_flags(config, given)
    return config, build(flags_class, own) if flags_class is not None else None


def _usage(without_config: Any) -> str:
    return "CONFIG" if without_config is None else "(CONFIG | --from MODEL)"


def _runs_code(source: str) -> bool:
    return not (source.endswith(".json") or Path(source).is_dir())


def _common_settings(config: TrainConfig) -> str:
    flags = flags_of(TrainConfig, config)
    common = [next(flag for flag in flags if flag.field == name) for name in COMMON]
    return f"common settings (of {len(flags)}; --help-all lists them):\n{rows_of(common)}"


def _all_settings(config: TrainConfig) -> str:
    """Returns the help of all settings, those without a group first."""
    flags = sorted(flags_of(TrainConfig, config), key=lambda flag: "." in flag.field)
    groups = groupby(flags, key=lambda flag: flag.field.rpartition(".")[0])
    return "\n\n".join(f"{name or 'run'}:\n{rows_of(list(group))}" for name, group in groups)
