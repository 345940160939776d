"""What is masked as one: tokens, whole words, or spans of words.

python scripts/ablate.py configs/ablations/unit.py --output runs/ablations/unit --seeds 3

Google's whole-word masking and SpanBERT (Joshi et al. 2020) were found better by what their models were fine-tuned
to do. Here all are evaluated on single masked tokens, which is what the first trains on.

Measured: 4.60 nats with tokens, 5.50 with whole words, 5.68 with spans; 9 runs of 83 to 93 s on two CPU cores.
"""

from dataclasses import replace

from mlm_jax.configs.ablations.tiny_wiki import config as parent

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingRecipe


def trials() -> dict[str, TrainConfig]:
    """As many tokens are masked with each."""
    return {
        "token": parent(),
        "whole_word": replace(parent(), masking=MaskingRecipe(unit="whole_word")),
        "span": replace(parent(), masking=MaskingRecipe(unit="span")),
    }
