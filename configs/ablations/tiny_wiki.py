r"""Parent of the sweeps in this folder: a small encoder on paragraphs of English Wikipedia.

The sweeps read the data prepared by these commands, from files with one article per line in the field "text":

    mkdir -p runs
    for part in train valid; do                                             # one paragraph per line
        zstdcat wiki-en-$part.jsonl.zst \
            | python -c 'import json, sys; [print(json.loads(line)["text"]) for line in sys.stdin]' \
            > runs/wiki-paragraphs-$part.txt
    done
    mlm-jax tokenizer --input runs/wiki-paragraphs-train.txt --vocab-size 2048 --output runs/ablations-tokenizer
    for part in train valid; do
        mlm-jax prepare --input runs/wiki-paragraphs-$part.txt --tokenizer runs/ablations-tokenizer \
            --output runs/ablations-$part
    done

With these settings, a model learns more than the frequencies of words from 2 million tokens, so that trials differ
after a minute on two CPU cores: few word pieces, short rows, small batches, a wide initialization, and rotary
positions.
"""

from mlm_jax.config import DataConfig, TrainConfig
from mlm_jax.config.model import BertConfig
from mlm_jax.config.optimizer import OptimizerConfig


def config() -> TrainConfig:
    """The parent of every trial. All trials are evaluated on the same 3,200 rows, each with a single paragraph."""
    return TrainConfig(
        model=BertConfig(
            vocabulary_size=2048,
            num_layers=2,
            hidden_dim=128,
            num_heads=2,
            intermediate_dim=512,
            max_sequence_length=32,
            num_segments=0,
            positions="rotary",
            initializer_stddev=0.08,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            pooler=False,
        ),
        data=DataConfig(
            path="runs/ablations-train",
            eval_path="runs/ablations-valid",
            sequence_length=32,
            eval_packing="document",
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, beta2=0.98),
        num_steps=4000,
        batch_size=16,
        log_every=50,
        eval_every=1000,
        eval_batches=200,
        checkpoint_every=1000,
        keep_checkpoints=1,
    )
