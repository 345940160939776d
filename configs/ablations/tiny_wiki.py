r"""What the sweeps beside this file derive from: a small BERT on English Wikipedia.

    python scripts/train_tokenizer.py --input wiki-en-train.jsonl.zst --vocab-size 2048 \
        --output runs/ablations-tokenizer
    python scripts/prepare_data.py --input wiki-en-train.jsonl.zst --tokenizer runs/ablations-tokenizer \
        --output runs/ablations-train
    python scripts/prepare_data.py --input wiki-en-valid.jsonl.zst --tokenizer runs/ablations-tokenizer \
        --output runs/ablations-valid
"""

from mlm_jax.config import BertConfig, DataConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """The parent of every trial."""
    return TrainConfig(
        model=BertConfig(
            vocabulary_size=2048,
            num_layers=2,
            hidden_dim=128,
            num_heads=2,
            intermediate_dim=512,
            max_sequence_length=64,
            initializer_stddev=0.08,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            pooler=False,
        ),
        data=DataConfig(path="runs/ablations-train", eval_path="runs/ablations-valid", sequence_length=32),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, beta2=0.98),
        num_steps=1500,
        batch_size=64,
        log_every=50,
        eval_every=500,
        eval_batches=50,
        checkpoint_every=10000,
    )
