"""BERT-large on a v5e-256 pod, with LAMB for a batch of 4,096 rows.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train bert_large_v5e_256 --data.path data/train
    mlm-jax compile-check bert_large_v5e_256 --topology v5e:16x16

Learning rate and warm-up are those of You et al. 2020, table 4, for 4,096 rows. docs/pods.md has the memory and time of
a step on each chip. Nothing has been trained with this config.
"""

from dataclasses import replace

from mlm_jax.config import MeshConfig, OptimizerConfig, TrainConfig
from mlm_jax.configs.bert_large_512 import config as large


def config() -> TrainConfig:
    """16 rows per chip, as on 16 chips."""
    return replace(
        large(),
        output_dir="runs/bert_large_v5e_256",
        mesh=MeshConfig(data=64, fsdp=4),
        optimizer=OptimizerConfig(name="lamb", learning_rate=1.77e-3, warmup_steps=3_125),
        num_steps=125_000,
        batch_size=4096,
    )
