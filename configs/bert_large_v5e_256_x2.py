"""BERT-large on two v5e-256 slices: `bert_large_v5e_256.py` twice, with gradients summed over the slow network.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train bert_large_v5e_256_x2 --data.path data/train
    mlm-jax compile-check bert_large_v5e_256_x2 --topology v5e:16x16 --num-slices 2

Learning rate and warm-up are those of You et al. 2020, table 4, for 8,192 rows. docs/pods.md has the memory and time of
a step on each chip. Nothing has been trained with this config.
"""

from dataclasses import replace

from mlm_jax.config import TrainConfig
from mlm_jax.configs.bert_large_v5e_256 import config as one_slice


def config() -> TrainConfig:
    """Only the sum over `data` crosses slices; parameters are gathered within a slice."""
    one = one_slice()
    return replace(
        one,
        output_dir="runs/bert_large_v5e_256_x2",
        mesh=replace(one.mesh, dcn_data=2),
        optimizer=replace(one.optimizer, learning_rate=2.5e-3, warmup_steps=3_125),
        num_steps=62_500,
        batch_size=8192,
    )
