"""RoBERTa-base (Liu et al. 2019): BERT-base with a different vocabulary, 124,695,897 parameters with the MLM head.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train roberta_base --data.path data/train
    mlm-jax compile-check roberta_base --devices 8 --chip "NVIDIA H100"

TOKENIZER is a WordPiece tokenizer with at most 50,265 entries. Shape, dropout, new masks in every epoch, learning rate,
warm-up, weight decay, betas, batch size, number of steps and rows of several documents follow the paper. Nothing has
been trained with this config.

Differences from the paper: WordPiece instead of byte-level BPE, and a position table without unused rows (1,536 fewer
parameters).
"""

from mlm_jax import BertConfig, ComputeConfig, DataConfig, MeshConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """8,192 rows per step in 32 microbatches, on a host with 8 GPUs that each hold the whole model."""
    return TrainConfig(
        output_dir="runs/roberta_base",
        model=BertConfig(
            vocabulary_size=50_265,
            num_segments=1,
            layer_norm_epsilon=1e-5,
            head_layer_norm_epsilon=1e-5,
            pooler=False,
        ),
        data=DataConfig(path="data/train", sequence_length=512),
        optimizer=OptimizerConfig(
            learning_rate=6e-4, warmup_steps=24_000, weight_decay=0.01, beta2=0.98, max_grad_norm=None
        ),
        mesh=MeshConfig(data=8),
        compute=ComputeConfig(dtype="bfloat16", remat="dots"),
        num_steps=500_000,
        batch_size=8_192,
        accumulation_steps=32,
        log_every=100,
        eval_every=10_000,
        checkpoint_every=5_000,
    )
