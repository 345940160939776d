"""BERT-tiny on the demo text. `mlm-jax demo` runs all of these commands, in two and a half minutes on 2 CPU cores:

    mlm-jax tokenizer --input mlm_jax/demo/landmarks.txt --vocab-size 2200 --output runs/demo-tokenizer
    mlm-jax prepare --input mlm_jax/demo/landmarks.txt --tokenizer runs/demo-tokenizer --output runs/demo-data
    mlm-jax train demo
    mlm-jax fill-mask runs/demo "The Statue of [MASK] is in New York." --top-k 5

The last command answers "liberty" with a probability of 64.9 %; the sentence is not in the text.
"""

from dataclasses import replace

from mlm_jax.config import DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.config.presets import PRESETS


def config() -> TrainConfig:
    """One sentence per row; the sentences are short enough for 22 tokens."""
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
