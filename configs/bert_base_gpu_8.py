"""BERT-base on a host with 8 GPUs: every GPU holds the whole model and an eighth of the rows.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train bert_base_gpu_8 --data.path data/train
    mlm-jax compile-check bert_base_gpu_8 --devices 8 --chip "NVIDIA H100"

docs/pods.md has the memory and time of a step on each GPU. Nothing has been trained with this config.
"""

from dataclasses import replace

from mlm_jax.config import MeshConfig, TrainConfig
from mlm_jax.configs.bert_base_512 import config as base


def config() -> TrainConfig:
    """32 rows per GPU; replicating a model of 0.4 GB is cheaper than sharding it."""
    return replace(base(), output_dir="runs/bert_base_gpu_8", mesh=MeshConfig(data=8))
