"""Pure JAX/Flax pretraining of BERT-style encoders with masked language modeling.

Data flows through the rooms of the package in this order:

    config → text → data → masking → model → step → run → store → use

The names below are public. Each is imported on first use, so that `import mlm_jax` is instant and tools that only read
text never import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlm_jax.config import (
        BertConfig,
        ComputeConfig,
        DataConfig,
        MeshConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
    from mlm_jax.config.presets import PRESETS
    from mlm_jax.errors import InputError, RunError
    from mlm_jax.masking.masking import MaskedTokens, example_keys, mask_tokens
    from mlm_jax.masking.rates import SelectionTable, selection_table
    from mlm_jax.model.bert import BertEncoder, BertMaskedLM, count_parameters
    from mlm_jax.run.trainer import TrainResult, train
    from mlm_jax.text.tokenizer import Tokenizer
    from mlm_jax.use.masked_lm import MaskedLM
    from mlm_jax.use.text_classifier import TextClassifier

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
    "MaskingRecipe",
    "MeshConfig",
    "OptimizerConfig",
    "RunError",
    "SelectionTable",
    "TextClassifier",
    "Tokenizer",
    "TrainConfig",
    "TrainResult",
    "count_parameters",
    "example_keys",
    "mask_tokens",
    "selection_table",
    "train",
]

_HOMES = {
    "mlm_jax.use.text_classifier": ("TextClassifier",),
    "mlm_jax.config": (
        *("BertConfig", "ComputeConfig", "DataConfig", "MeshConfig", "OptimizerConfig", "TrainConfig"),
    ),
    "mlm_jax.text.tokenizer": ("Tokenizer",),
    "mlm_jax.errors": ("InputError", "RunError"),
    "mlm_jax.masking.masking": ("MaskedTokens", "example_keys", "mask_tokens"),
    "mlm_jax.config.masking": ("MaskingConfig", "MaskingRecipe"),
    "mlm_jax.masking.rates": ("SelectionTable", "selection_table"),
    "mlm_jax.model.bert": ("BertEncoder", "BertMaskedLM", "count_parameters"),
    "mlm_jax.config.presets": ("PRESETS",),
    "mlm_jax.use.masked_lm": ("MaskedLM",),
    "mlm_jax.run.trainer": ("TrainResult", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def _version() -> str:
    # Imported late, because it takes longer than the rest of this module.
    from importlib import metadata

    try:
        return metadata.version("mlm-jax")
    except metadata.PackageNotFoundError:
        return "unknown: not installed"


def __dir__() -> list[str]:
    return sorted(__all__)
