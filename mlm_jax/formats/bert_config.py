"""What every foreign format takes for granted: the model is BERT, whatever its size."""

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError

# The fields that no config of theirs has, so that BERT's value is the only one.
_OF_BERT = ("positions", "local_attention_window", "norm", "norm_placement", "embedding_norm", "biases")
_ACTIVATIONS = ("gelu", "gelu_tanh")


def require_bert(format_name: str, config: BertConfig) -> BertConfig:
    """The config itself.

    Raises:
        InputError: the format cannot say a setting, with which its library would compute something else.
    """
    bert = BertConfig()
    wanted = {name: (getattr(bert, name),) for name in _OF_BERT} | {"activation": _ACTIVATIONS}
    for name, allowed in wanted.items():
        value = getattr(config, name)
        if value not in allowed:
            either = " or ".join(map(repr, allowed))
            raise InputError(
                f"{format_name} cannot say model.{name} = {value!r}: must be {either}, as in BERT"
            )
    if config.num_segments == 0:
        raise InputError(f"{format_name} cannot say model.num_segments = 0: must be at least 1, as in BERT")
    return config
