"""BERT-large on rows of 512 tokens: `bert_base_512.py` with the larger model.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train bert_large_512 --data.path data/train
    mlm-jax compile-check bert_large_512 --topology v5e:4x4

docs/pods.md has the memory and time of a step on each chip. Nothing has been trained with this config.
"""

from dataclasses import replace

from mlm_jax.config import TrainConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.configs.bert_base_512 import config as base
from mlm_jax.configs.bert_base_512 import pod_shape


def config() -> TrainConfig:
    """The backward pass recomputes every layer, because the activations of 24 layers do not fit next to the moments."""
    bert_base = base()
    return replace(
        bert_base,
        output_dir="runs/bert_large_512",
        model=pod_shape(PRESETS["bert_large_en_uncased"]),
        compute=replace(bert_base.compute, remat="full"),
    )
