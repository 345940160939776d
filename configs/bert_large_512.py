"""BERT-large on rows of 512 tokens: `bert_base_512.py` with the larger model.

    python scripts/train.py configs/bert_large_512.py --data.path data/train
    python scripts/compile_check.py configs/bert_large_512.py --topology v5e:4x4

What a step takes of a chip is in docs/pods.md; nothing was trained with this config here.
"""

from dataclasses import replace

from mlm_jax.configs.bert_base_512 import config as base
from mlm_jax.configs.bert_base_512 import pod_shape

from mlm_jax.config import TrainConfig
from mlm_jax.config.presets import PRESETS


def config() -> TrainConfig:
    """Each layer is computed again in the backward pass: 24 layers of activations do not fit beside the moments."""
    smaller = base()
    return replace(
        smaller,
        output_dir="runs/bert_large_512",
        model=pod_shape(PRESETS["bert_large_en_uncased"]),
        compute=replace(smaller.compute, remat="full"),
    )
