r"""BERT-tiny on English Wikipedia: 5,347 articles of 2015, 92 million characters, and 560 more to evaluate on.

    python scripts/prepare_data.py --input wiki-en-train.jsonl.zst \
        --tokenizer bert-base-uncased/vocab.txt --output runs/wiki-train
    python scripts/prepare_data.py --input wiki-en-valid.jsonl.zst \
        --tokenizer bert-base-uncased/vocab.txt --output runs/wiki-valid
    python scripts/train.py configs/bert_tiny_wiki.py
    python scripts/evaluate.py runs/bert_tiny_wiki --data runs/wiki-valid

Seen with jax 0.10.2 on 2 CPU cores: 33 minutes of training on cores that did other work too (0.56 s a step; 0.37 s a
step on idle ones, so 22 minutes), and an evaluation loss of 6.555 nats on all of the 560 articles (accuracy 14.1 %,
327,827 masked tokens; an untrained model has ln 30,522 = 10.33). That is 0.72 epochs: the model knows the frequencies
of words and little of their order yet, and is still learning. `--num-steps` gives it more.
"""

from dataclasses import replace

from mlm_jax.config import DataConfig, OptimizerConfig, TrainConfig
from mlm_jax.presets import PRESETS


def config() -> TrainConfig:
    """Packed rows of 128 tokens."""
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
