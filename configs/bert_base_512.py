"""BERT-base on rows of 512 tokens: the shape that the recipes for pods share; every chip replicates it.

    python scripts/prepare_data.py --input CORPUS --tokenizer TOKENIZER --output data/train
    python scripts/train.py configs/bert_base_512.py --data.path data/train
    python scripts/compile_check.py configs/bert_base_512.py --topology v5e:4x4

What a step takes of a chip is in docs/pods.md. Batch and steps are those of Devlin et al. 2019; nothing was trained
with this config here.
"""

from dataclasses import replace

from mlm_jax.config import BertConfig, ComputeConfig, DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.presets import PRESETS


def config() -> TrainConfig:
    """256 rows a step, 16 a chip on 16 chips.

    Nothing is dropped out (Geiping & Goldstein 2022): a corpus for so many steps is hardly read twice, and the masks
    of attention's dropout alone would be 12 × 512 × 512 bytes a row and layer.
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
    """Without pooler and dropout, and with a table that any tensor axis of a pod divides."""
    return replace(
        preset, pooler=False, vocabulary_multiple=128, dropout_rate=0.0, attention_dropout_rate=0.0
    )
