"""BERT-base on rows of 512 tokens; the parent of the configs for pods. Every chip holds the whole model.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train bert_base_512 --data.path data/train
    mlm-jax compile-check bert_base_512 --topology v5e:4x4

docs/pods.md has the memory and time of a step on each chip. Batch size and number of steps are those of Devlin et al.
2019. Nothing has been trained with this config.
"""

from dataclasses import replace

from mlm_jax.config import BertConfig, ComputeConfig, DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.presets import PRESETS


def config() -> TrainConfig:
    """256 rows per step: 16 per chip on 16 chips.

    There is no dropout (Geiping & Goldstein 2022), because a corpus for this many steps is rarely read twice, and the
    masks of attention dropout alone would take 12 × 512 × 512 bytes per row and layer.
    """
    return TrainConfig(
        output_dir="runs/bert_base_512",
        model=pod_shape(PRESETS["bert_base_en_uncased"]),
        data=DataConfig(path="data/train", sequence_length=512),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
        compute=ComputeConfig(dtype="bfloat16", remat="dots"),
        num_steps=1_000_000,
        batch_size=256,
        log_every=100,
        eval_every=10_000,
        checkpoint_every=5_000,
    )


def pod_shape(preset: BertConfig) -> BertConfig:
    """Returns the preset without pooler and dropout, with an embedding table that any tensor axis of a pod divides."""
    return replace(
        preset, pooler=False, vocabulary_multiple=128, dropout_rate=0.0, attention_dropout_rate=0.0
    )
