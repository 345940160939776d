"""Settings that BERT's relatives share: which of ours they can express, and their names in files."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig, HeadActivation
from mlm_jax.errors import InputError

# Settings that these formats lack, so that only BERT's value is possible.
_FIXED_SETTINGS = (
    "positions",
    "local_attention_window",
    "norm",
    "norm_placement",
    "embedding_norm",
    "biases",
)
ACTIVATIONS: Mapping[str, str] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
"""Maps our activations to transformers' names."""

_READ_ACTIVATIONS: Mapping[str, HeadActivation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

BERT_SETTINGS: Mapping[str, str] = {
    "vocab_size": "vocabulary_size",
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_dim",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
    "initializer_range": "initializer_stddev",
}
"""Maps names in Google's bert_config.json and transformers' config.json to our settings of the same meaning."""


def require_bert(
    format_name: str,
    config: BertConfig,
    *,
    tied: bool = False,
    position_offset: int = 0,
    segments: bool = True,
) -> BertConfig:
    """Returns the config unchanged.

    Raises:
        InputError: the format cannot express a setting, so its library would compute different outputs. With `tied`,
            this includes an untied output embedding.
    """
    bert = BertConfig()
    allowed = {name: (getattr(bert, name),) for name in _FIXED_SETTINGS} | {"activation": tuple(ACTIVATIONS)}
    allowed["position_offset"] = (position_offset,)
    if tied:
        allowed["tie_embeddings"] = (True,)
    for name, values in allowed.items():
        value = getattr(config, name)
        if value not in values:
            raise InputError(
                f"{format_name} cannot express model.{name} = {value!r}: must be "
                f"{' or '.join(map(repr, values))}, as in BERT"
            )
    if segments and config.num_segments == 0:
        raise InputError(
            f"{format_name} cannot express model.num_segments = 0: must be at least 1, as in BERT"
        )
    return config


def activation_in(file: Path, settings: Mapping[str, Any], key: str) -> HeadActivation:
    """Returns the activation in the settings of a transformers file. Raises InputError if it is not supported."""
    activation = settings.get(key, "gelu")
    if not isinstance(activation, str) or activation not in _READ_ACTIVATIONS:
        raise InputError(
            f"{file}: {key} {activation!r} is not supported: must be one of {', '.join(_READ_ACTIVATIONS)}"
        )
    return _READ_ACTIVATIONS[activation]


def config_from_settings(
    format_name: str, file: Path, settings: Mapping[str, Any], names: Mapping[str, str], **conventions: Any
) -> BertConfig:
    """Returns the config for the settings of a file. `names` maps their names to ours; defaults are BERT's.

    Raises:
        InputError: a value is invalid; the message begins with the file.
    """
    found = {ours: settings[theirs] for theirs, ours in names.items() if theirs in settings} | conventions
    for name, default in asdict(BertConfig()).items():
        # JSON may write 0.0 as 0. Numbers without a float are left to the config's checks.
        if isinstance(default, float) and type(found.get(name)) is int and abs(found[name]) < 2**53:
            found[name] = float(found[name])
    try:
        return require_bert(
            format_name,
            BertConfig(**found),
            position_offset=conventions.get("position_offset", 0),
            segments=conventions.get("num_segments") != 0,
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def settings_from_config(config: BertConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """Inverts `config_from_settings`."""
    return {theirs: getattr(config, ours) for theirs, ours in names.items()}
