"""BERT-large on two v5e-256 slices: `bert_large_v5e_256.py` twice, gradients summed over the data-centre network.

    python scripts/train.py configs/bert_large_v5e_256_x2.py --data.path data/train
    python scripts/compile_check.py configs/bert_large_v5e_256_x2.py --topology v5e:16x16 --num-slices 2

Learning rate and warm-up are those of You et al. 2020, table 4, for 8,192 rows. What a step takes of a chip is in
docs/pods.md; nothing was trained with this config here.
"""

from dataclasses import replace

from mlm_jax.configs.bert_large_v5e_256 import config as one_slice

from mlm_jax.config import TrainConfig


def config() -> TrainConfig:
    """Only the sum over `data` leaves a slice; parameters are gathered within one."""
    one = one_slice()
    return replace(
        one,
        output_dir="runs/bert_large_v5e_256_x2",
        mesh=replace(one.mesh, dcn_data=2),
        optimizer=replace(one.optimizer, learning_rate=2.5e-3, warmup_steps=3_125),
        num_steps=62_500,
        batch_size=8192,
    )
