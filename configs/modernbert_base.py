"""An encoder of the shape of ModernBERT-base (Warner et al. 2024): 149,656,000 parameters with the MLM head.

    python scripts/prepare_data.py --input CORPUS --tokenizer TOKENIZER --output data/train
    python scripts/train.py configs/modernbert_base.py --data.path data/train
    python scripts/compile_check.py configs/modernbert_base.py --devices 8 --chip "NVIDIA H100"

TOKENIZER is any of WordPiece with at most 50,368 entries. Batch, learning rate, warm-up over 3 billion tokens, weight
decay, betas, mask rate and the 1.7 trillion tokens in rows of 1,024 are those of the first phase of the paper, with the
last 50 billion tokens of decay; nothing was trained with this config here, and no result is claimed.

What differs from the paper: WordPiece instead of its byte-level tokenizer, AdamW instead of StableAdamW, a linear decay
instead of that of a square root, a batch that does not grow, no phase of rows of 8,192 tokens, weights drawn with a
stddev of 0.02 throughout, and an attention norm in the first layer too (768 parameters more).
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
    """4,608 rows a step in 24 microbatches, on one host of 8 GPUs that hold the whole model each."""
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
            biases=False,
            activation="geglu",
            layer_norm_epsilon=1e-5,
            head_layer_norm_epsilon=1e-5,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
            pooler=False,
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
