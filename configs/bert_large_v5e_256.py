"""BERT-large on a v5e-256 pod, with LAMB for its batch of 4,096 rows.

    python scripts/train.py configs/bert_large_v5e_256.py --data.path data/train
    python scripts/compile_check.py configs/bert_large_v5e_256.py --topology v5e:16x16

Learning rate and warm-up are those of You et al. 2020, table 4, for 4,096 rows. What a step takes of a chip is in
docs/pods.md; nothing was trained with this config here.
"""

from dataclasses import replace

from mlm_jax.configs.bert_large_512 import config as large

from mlm_jax.config import MeshConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """16 rows a chip, as on 16 chips."""
    return replace(
        large(),
        output_dir="runs/bert_large_v5e_256",
        mesh=MeshConfig(data=64, fsdp=4),
        optimizer=OptimizerConfig(name="lamb", learning_rate=1.77e-3, warmup_steps=3_125),
        num_steps=125_000,
        batch_size=4096,
    )
