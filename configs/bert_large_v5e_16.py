"""BERT-large on a v5e-16 slice: parameters and moments are sharded over 4 chips, the batch over all 16.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train bert_large_v5e_16 --data.path data/train
    mlm-jax compile-check bert_large_v5e_16 --topology v5e:4x4

docs/pods.md has the memory and time of a step on each chip. Nothing has been trained with this config.
"""

from dataclasses import replace

from mlm_jax.config import MeshConfig, TrainConfig
from mlm_jax.configs.bert_large_512 import config as large


def config() -> TrainConfig:
    """16 rows per chip."""
    return replace(large(), output_dir="runs/bert_large_v5e_16", mesh=MeshConfig(data=4, fsdp=4))
