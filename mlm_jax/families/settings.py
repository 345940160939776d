"""Settings in config.json that BERT's relatives share, and their names in files."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from mlm_jax.config.model import BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.families.conventions import ACTIVATIONS, BERT_CONVENTIONS, Conventions

_READ_ACTIVATIONS: Mapping[str, HeadActivation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

SIZE_SETTINGS: Mapping[str, str] = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_dim",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "initializer_range": "initializer_stddev",
}
"""Maps names that nearly all families in transformers share to our settings."""

BERT_SETTINGS: Mapping[str, str] = {
    **SIZE_SETTINGS,
    "type_vocab_size": "num_segments",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
}
"""Maps names in Google's bert_config.json and transformers' config.json to our settings of the same meaning."""

TRANSFORMERS_SETTINGS: Mapping[str, str] = {**BERT_SETTINGS, "tie_word_embeddings": "tie_embeddings"}
"""Maps names in transformers' config.json of BERT and its relatives to our settings."""

_ONLY = {"is_decoder": False, "add_cross_attention": False}


def activation_in(file: Path, settings: Mapping[str, Any], key: str = "hidden_act") -> HeadActivation:
    """Returns the activation in the settings of a transformers file. Raises InputError if it is not supported."""
    activation = settings.get(key, "gelu")
    if not isinstance(activation, str) or activation not in _READ_ACTIVATIONS:
        raise InputError(
            f"{file}: {key} {activation!r} is not supported: must be one of {', '.join(_READ_ACTIVATIONS)}"
        )
    return _READ_ACTIVATIONS[activation]


def check_only(file: Path, settings: Mapping[str, Any], **values: Any) -> None:
    """Raises InputError if a setting of a file has another value than the only one that is supported."""
    for name, value in (_ONLY | values).items():
        stated = settings.get(name)
        if stated is not None and stated != value:
            raise InputError(f"{file}: {name} = {stated!r} is not supported: must be {value!r}")


def check_whole(file: Path, settings: Mapping[str, Any], *names: str) -> None:
    """Raises InputError if a setting of a file is no whole number of at least 0."""
    for name in names:
        value = settings.get(name)
        if type(value) is not int or value < 0:
            raise InputError(f"{file}: {name} = {value!r}: must be a whole number of at least 0")


def heads_in(file: Path, settings: Mapping[str, Any]) -> int:
    """Returns the number of heads. Raises InputError if it is none, or heads have not their share of the width."""
    settings = given(settings, num_attention_heads=12, hidden_size=768)
    check_whole(file, settings, "num_attention_heads", "hidden_size")
    heads: int = settings["num_attention_heads"]
    check_only(file, settings, head_dim=settings["hidden_size"] // max(1, heads))
    return heads


def rotary_base_in(file: Path, settings: Mapping[str, Any], default: float) -> float:
    """Returns the rotary base, from either form of the file. Raises InputError for another kind of positions."""
    check_only(file, settings, rope_scaling=None)
    rope = settings.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise InputError(f"{file}: rope_parameters: must have rope_theta and the rope_type 'default'")
    base = rope.get("rope_theta") or settings.get("rope_theta") or default
    if type(base) not in (int, float):
        raise InputError(f"{file}: rope_theta = {base!r}: must be a number above 1")
    return float(base)


def rotary_settings(config: BertConfig) -> dict[str, Any]:
    """Inverts `rotary_base_in`: transformers 5 reads the parameters, transformers 4 the base alone."""
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "rope_theta": config.rotary_base,
    }


def given(settings: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Returns the settings of a file that are not null, with `defaults` for the others."""
    return defaults | {name: value for name, value in settings.items() if value is not None}


def config_from_settings(
    file: Path,
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    conventions: Conventions = BERT_CONVENTIONS,
    **values: Any,
) -> BertConfig:
    """Returns the config for the settings of a file. `names` maps their names to ours; defaults are BERT's.

    Raises:
        InputError: a value is invalid; the message begins with the file.
    """
    found = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings} | values
    for name, default in asdict(BertConfig()).items():
        # JSON may write 0.0 as 0. Numbers without a float are left to the config's checks.
        if isinstance(default, float) and type(found.get(name)) is int and abs(found[name]) < 2**53:
            found[name] = float(found[name])
    for name, possible in conventions.items():
        if name not in found and isinstance(possible, tuple) and len(possible) == 1:
            found[name] = possible[0]
    try:
        return BertConfig(**found)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def settings_from_config(config: BertConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """Inverts `config_from_settings`."""
    return {theirs: getattr(config, ours) for theirs, ours in names.items()}


def encoder_activation(config: BertConfig) -> HeadActivation:
    """Returns the activation of an encoder without gates, as that of a head that has the same."""
    return cast(HeadActivation, config.activation)


def shared_settings(config: BertConfig) -> dict[str, Any]:
    """Returns the settings in config.json that all relatives of BERT have."""
    return settings_from_config(config, TRANSFORMERS_SETTINGS) | {
        "hidden_act": ACTIVATIONS[config.activation],
        "layer_norm_eps": config.layer_norm_epsilon,
    }
