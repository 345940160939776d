"""BERT-base on one host of 8 GPUs: every GPU holds the whole model and an eighth of the rows.

    python scripts/train.py configs/bert_base_gpu_8.py --data.path data/train
    python scripts/compile_check.py configs/bert_base_gpu_8.py --devices 8 --chip "NVIDIA H100"

What a step takes of a GPU is in docs/pods.md; nothing was trained with this config here.
"""

from dataclasses import replace

from mlm_jax.configs.bert_base_512 import config as base

from mlm_jax.config import MeshConfig, TrainConfig


def config() -> TrainConfig:
    """32 rows a GPU; a model of 0.4 GB is cheaper to replicate than to gather."""
    return replace(base(), output_dir="runs/bert_base_gpu_8", mesh=MeshConfig(data=8))
