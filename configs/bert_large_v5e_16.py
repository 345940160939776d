"""BERT-large on a v5e-16 slice: parameters and moments split over 4 chips, the batch over all 16.

    python scripts/train.py configs/bert_large_v5e_16.py --data.path data/train
    python scripts/compile_check.py configs/bert_large_v5e_16.py --topology v5e:4x4

What a step takes of a chip is in docs/pods.md; nothing was trained with this config here.
"""

from dataclasses import replace

from mlm_jax.configs.bert_large_512 import config as large

from mlm_jax.config import MeshConfig, TrainConfig


def config() -> TrainConfig:
    """16 rows a chip."""
    return replace(large(), output_dir="runs/bert_large_v5e_16", mesh=MeshConfig(data=4, fsdp=4))
