"""Settings of a run, as frozen dataclasses that validate themselves. Never imports jax.

In: Python keyword arguments, a config file, or JSON. Out: a `TrainConfig`.
Read `train.py` first: it combines the others (`model.py`, `masking.py`, `optimizer.py`). `files.py` reads config files.
"""

from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.config.model import BertConfig
from mlm_jax.config.optimizer import OptimizerConfig
from mlm_jax.config.train import (
    Attention,
    ComputeConfig,
    DataConfig,
    DistributedConfig,
    MeshConfig,
    Packing,
    Remat,
    TrainConfig,
)

__all__ = [
    "Attention",
    "BertConfig",
    "ComputeConfig",
    "DataConfig",
    "DistributedConfig",
    "MaskingConfig",
    "MaskingRecipe",
    "MeshConfig",
    "OptimizerConfig",
    "Packing",
    "Remat",
    "TrainConfig",
]
