"""BERT-tiny on English Wikipedia."""

from dataclasses import replace

from mlm_jax.config import DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.presets import PRESETS


def config() -> TrainConfig:
    """Packed rows of 128 tokens; about two thirds of an epoch of 92 million characters."""
    return TrainConfig(
        output_dir="runs/bert_tiny_wiki",
        model=replace(PRESETS["bert_tiny_en_uncased"], pooler=False),
        data=DataConfig(path="runs/wiki-train", eval_path="runs/wiki-valid", sequence_length=128),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=300),
        num_steps=3500,
        batch_size=32,
        log_every=50,
        eval_every=500,
        eval_batches=50,
        checkpoint_every=500,
    )
