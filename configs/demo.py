"""BERT-tiny on the demo text: `make demo` prepares the data, trains this, and fills the mask."""

from dataclasses import replace

from mlm_jax.config import DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.presets import PRESETS


def config() -> TrainConfig:
    """A sentence a row; the short sentences fit in 22 tokens."""
    return TrainConfig(
        output_dir="runs/demo",
        model=replace(PRESETS["bert_tiny_en_uncased"], vocabulary_size=2108, pooler=False),
        data=DataConfig(
            path="runs/demo-data", eval_path="runs/demo-data", sequence_length=22, packing="document"
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=200),
        num_steps=4000,
        batch_size=32,
        log_every=50,
        eval_every=500,
        checkpoint_every=1000,
    )
