"""Pure JAX/Flax pretraining of BERT-style encoders with masked language modelling.

Data flows one way through the package, and each part is a file of that name:

    config → data (corpus → tokenizer → shards → batches) → masking → model → train_step → program
           → trainer → checkpoint → pretrained

The names below are the public ones; they are imported when first used, so that `import mlm_jax` costs nothing and
tools that only read text never start jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlm_jax.classifier import TextClassifier
    from mlm_jax.config import (
        BertConfig,
        ComputeConfig,
        DataConfig,
        MeshConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from mlm_jax.data.tokenizer import Tokenizer
    from mlm_jax.errors import InputError, RunError
    from mlm_jax.masking import MaskedTokens, example_keys, mask_tokens
    from mlm_jax.masking_config import MaskingConfig, MaskingRecipe
    from mlm_jax.masking_law import MaskingLaw, masking_law
    from mlm_jax.model.bert import BertEncoder, BertMaskedLM, count_parameters
    from mlm_jax.presets import PRESETS
    from mlm_jax.pretrained import MaskedLM
    from mlm_jax.trainer import TrainResult, train

__all__ = [
    "PRESETS",
    "BertConfig",
    "BertEncoder",
    "BertMaskedLM",
    "ComputeConfig",
    "DataConfig",
    "InputError",
    "MaskedLM",
    "MaskedTokens",
    "MaskingConfig",
    "MaskingLaw",
    "MaskingRecipe",
    "MeshConfig",
    "OptimizerConfig",
    "RunError",
    "TextClassifier",
    "Tokenizer",
    "TrainConfig",
    "TrainResult",
    "count_parameters",
    "example_keys",
    "mask_tokens",
    "masking_law",
    "train",
]

_HOMES = {
    "mlm_jax.classifier": ("TextClassifier",),
    "mlm_jax.config": (
        *("BertConfig", "ComputeConfig", "DataConfig", "MeshConfig", "OptimizerConfig", "TrainConfig"),
    ),
    "mlm_jax.data.tokenizer": ("Tokenizer",),
    "mlm_jax.errors": ("InputError", "RunError"),
    "mlm_jax.masking": ("MaskedTokens", "example_keys", "mask_tokens"),
    "mlm_jax.masking_config": ("MaskingConfig", "MaskingRecipe"),
    "mlm_jax.masking_law": ("MaskingLaw", "masking_law"),
    "mlm_jax.model.bert": ("BertEncoder", "BertMaskedLM", "count_parameters"),
    "mlm_jax.presets": ("PRESETS",),
    "mlm_jax.pretrained": ("MaskedLM",),
    "mlm_jax.trainer": ("TrainResult", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
