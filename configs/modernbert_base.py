"""An encoder with the shape of ModernBERT-base (Warner et al. 2024): 149,656,000 parameters with the MLM head.

    mlm-jax prepare --input CORPUS --tokenizer TOKENIZER --output data/train
    mlm-jax train modernbert_base --data.path data/train
    mlm-jax compile-check modernbert_base --devices 8 --chip "NVIDIA H100"

TOKENIZER is a WordPiece tokenizer with at most 50,368 entries. Batch size, learning rate, warm-up over 3 billion
tokens, weight decay, betas, masking rate and the 1.7 trillion tokens in rows of 1,024 follow the first phase of the
paper, with the decay over the last 50 billion tokens. Nothing has been trained with this config.

Differences from the paper: WordPiece instead of a byte-level tokenizer, AdamW instead of StableAdamW, a linear decay
instead of a square-root decay, a constant batch size, no phase with rows of 8,192 tokens, and weights initialized with
a standard deviation of 0.02 throughout. 768 of the parameters have no effect: the row of the first attention norm.
"""

from mlm_jax import (
    BertConfig,
    ComputeConfig,
    DataConfig,
    MaskingRecipe,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)


def config() -> TrainConfig:
    """4,608 rows per step in 24 microbatches, on a host with 8 GPUs that each hold the whole model."""
    return TrainConfig(
        output_dir="runs/modernbert_base",
        model=BertConfig(
            vocabulary_size=50_368,
            num_layers=22,
            hidden_dim=768,
            num_heads=12,
            intermediate_dim=1152,
            max_sequence_length=1024,
            num_segments=0,
            positions="rotary",
            rotary_base=160_000.0,
            local_rotary_base=10_000.0,
            local_attention_window=128,
            global_attention_every=3,
            norm_placement="pre",
            first_attention_norm=False,
            biases=False,
            activation="geglu",
            layer_norm_epsilon=1e-5,
            head_layer_norm_epsilon=1e-5,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            pooler=False,
            # Of a classifier that is made of the model.
            pooler_kind="head",
        ),
        data=DataConfig(path="data/train", sequence_length=1024),
        masking=MaskingRecipe(mask_selection_rate=0.3),
        optimizer=OptimizerConfig(
            learning_rate=8e-4,
            schedule="trapezoidal",
            warmup_steps=640,
            cooldown_steps=10_600,
            weight_decay=1e-5,
            beta2=0.98,
        ),
        mesh=MeshConfig(data=8),
        compute=ComputeConfig(dtype="bfloat16", remat="dots"),
        num_steps=370_900,
        batch_size=4_608,
        accumulation_steps=24,
        log_every=100,
        eval_every=10_000,
        checkpoint_every=5_000,
    )
